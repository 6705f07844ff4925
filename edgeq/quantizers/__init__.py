"""How a tensor is fake-quantized."""
