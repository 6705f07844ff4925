"""The parts that training programs share, as torchvision's reference scripts have them: none knows of quantization."""
