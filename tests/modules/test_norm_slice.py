"""Some channels of a user's batch norm: views of its parameters and statistics, and no state."""

import copy
import pickle

import pytest
import torch
from torch import nn

from edgeq.modules.norm_slice import NormSlice


def parts(**options):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(7, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm, NormSlice(norm, 0, 3, counts=True), NormSlice(norm, 3, 7, counts=False)


def data(seed=0):
    return torch.randn(4, 7, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"momentum": 0.0}, {"affine": False}, {"eps": 0.5}], ids=str
)
def test_two_parts_do_what_the_whole_does_in_training_and_after(options):
    whole = parts(**options)[0].train()
    norm, first, second = (module.train() for module in parts(**options))
    for seed in range(3):
        x = data(seed)
        found = torch.cat([first(x[:, :3]), second(x[:, 3:])], 1)
        assert torch.allclose(found, whole(x), atol=1e-6)
    for (key, value), other in zip(norm.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), other.float(), atol=1e-6), key
    for module in (whole, first, second):
        module.eval()
    assert torch.allclose(torch.cat([first(x[:, :3]), second(x[:, 3:])], 1), whole(x), atol=1e-6)


def test_gradients_reach_the_owner():
    norm, first, _ = parts()
    first.train()(data()[:, :3]).square().sum().backward()
    assert norm.weight.grad[:3].abs().min() > 0
    assert torch.equal(norm.weight.grad[3:], torch.zeros(4))


def test_it_has_no_parameters_no_keys_and_loads_anything():
    _, first, _ = parts()
    assert list(first.parameters()) == list(first.buffers()) == list(first.children()) == []
    assert first.state_dict() == {}
    assert first.load_state_dict({}, strict=True).missing_keys == []


def test_copies_together_with_the_owner_stay_together():
    tree = nn.ModuleDict(dict(zip(("norm", "first", "second"), parts(), strict=True)))
    for other in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree).double()):
        assert other["first"].owner is other["second"].owner is other["norm"]
        assert other["norm"] is not tree["norm"]
        assert other["first"].weight.dtype is other["norm"].weight.dtype
