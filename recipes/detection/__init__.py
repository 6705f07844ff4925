"""Object detection on data in COCO's format: training, quantization, export and average precision."""
