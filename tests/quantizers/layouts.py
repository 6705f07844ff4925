"""Tensors of every layout that a network passes on."""

import torch


def normal(*shape, seed=0):
    return 5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "contiguous": lambda: normal(2, 3, 4, 5),
    "channels last": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last 3d": lambda: normal(2, 3, 4, 2, 2).to(memory_format=torch.channels_last_3d),
    "permuted": lambda: normal(2, 3, 4).permute(2, 0, 1),
    "transposed": lambda: normal(6, 7).t(),
    "strided": lambda: normal(4, 6)[:, ::2],
    "sliced": lambda: normal(5, 6)[1:4],
    "sliced inside": lambda: normal(5, 6)[1:4, 2:5],
    "expanded": lambda: normal(1, 6).expand(4, 6),
    "overlapping": lambda: normal(10).unfold(0, 4, 1),
    "scalar": lambda: normal(1)[0],
    "one element": lambda: normal(1, 1, 1, 1),
    "empty batch": lambda: normal(0, 3, 4, 5),
    "odd strides of size one": lambda: normal(3, 4)[:, :1].unsqueeze(0),
}
