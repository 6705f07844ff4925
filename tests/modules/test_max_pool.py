"""Max pooling of codes against PyTorch's of the same numbers."""

from itertools import product

import pytest
import torch
from torch import nn

from edgeq.modules.max_pool import MaxPoolCodes

KINDS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


@pytest.mark.parametrize("dimensions", KINDS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_every_window_picks_the_same_code(dimensions, dtype):
    limits = torch.iinfo(dtype)
    shape = (2, 3, 11, 13, 9)[: 2 + dimensions]
    codes = torch.randint(limits.min, limits.max + 1, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if dimensions == 2:
        codes = codes.contiguous(memory_format=torch.channels_last)
    for size, stride, padding, dilation, ceil in product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (False, True)):
        if padding <= size // 2:
            module = KINDS[dimensions](size, stride, padding, dilation, ceil_mode=ceil)
            expected = module(codes.float()).to(dtype)
            assert torch.equal(MaxPoolCodes.of_module(module)(codes), expected), module


def test_sizes_may_differ_from_dimension_to_dimension_and_a_batch_is_not_needed():
    module = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2))
    codes = torch.arange(2 * 7 * 8, dtype=torch.int8).reshape(2, 7, 8)
    assert torch.equal(MaxPoolCodes.of_module(module)(codes), module(codes.float()).to(torch.int8))


def test_the_result_is_a_tensor_of_its_own():
    codes = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    MaxPoolCodes.of_module(nn.MaxPool2d(1))(codes).add_(1)
    assert int(codes.sum()) == 0


def test_what_gives_indices_or_has_no_windows_is_left_to_pytorch():
    assert MaxPoolCodes.of_module(nn.MaxPool2d(2, return_indices=True)) is None
    assert MaxPoolCodes.of_module(nn.AdaptiveMaxPool2d(1)) is None
