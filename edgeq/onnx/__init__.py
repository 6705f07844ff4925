"""What leaves the house: export, and the proof that the file computes what was validated."""
