"""Programs that a user copies."""
