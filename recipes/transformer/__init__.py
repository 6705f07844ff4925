"""Transformers to train, quantize and export: an image classifier (`vit`) and a text classifier (`text`)."""
