"""Quantized layers, and the integer ones that they are converted to."""
