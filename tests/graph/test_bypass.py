"""Code around a part that goes past its forward to what is inside is refused."""

import pytest
import torch
from torch import Tensor, nn

import edgeq
from tests.graph.parity import images
from tests.graph.parted import calibrated, data


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


class Around(nn.Module):
    """Calls a method of its part, or a child of it, in place of its forward; in evaluation, or only in training."""

    def __init__(self, where, only_in_training):
        super().__init__()
        self.encoder, self.where, self.only_in_training = Features(), where, only_in_training

    def forward(self, x):
        if self.only_in_training and not self.training:
            return self.encoder(x)
        if self.where == "method":
            return self.encoder.features(x).mean((2, 3))
        return self.encoder.norm(self.encoder.stem(x)).mean((2, 3))


@pytest.mark.parametrize("where", ["method", "child"])
@pytest.mark.parametrize("only_in_training", [False, True])
def test_layers_of_a_part_that_are_called_around_its_forward_are_refused_by_name(where, only_in_training):
    wrapped = edgeq.QATFxModule(Around(where, only_in_training), submodules=["encoder"], total_epochs=2)
    wrapped.eval()
    if only_in_training:
        assert wrapped(images()).shape == (2, 4)
        wrapped.train()
    message = (
        r"^'encoder.stem' is called from outside of the forward of 'encoder', .* submodules=\['encoder.stem', \.\.\.\]"
    )
    with pytest.raises(edgeq.SpecError, match=message):
        wrapped(images())
    hooks = [module for module in wrapped.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert hooks == []
    inside = edgeq.PTCFxModule(Around(where, only_in_training), submodules=["encoder.stem"]).calibrate([images()])
    assert torch.equal(inside.convert()(images()), inside(images()))


def test_a_sequential_that_is_a_part_is_no_list_any_more():
    class Indexing(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

        def forward(self, x):
            return self.encoder[0](x)

    wrapped = edgeq.PTCFxModule(Indexing(), submodules=["encoder"])
    with pytest.raises(TypeError, match="'PreparedModule' object is not subscriptable"):
        wrapped(torch.rand(2, 4))


def test_only_the_first_forward_of_each_mode_looks_for_it():
    wrapped = calibrated()
    assert wrapped.module._modes_seen == {True}
    wrapped(data()[0])
    assert wrapped.module._modes_seen == {True, False}


def test_example_inputs_show_it_at_once():
    with pytest.raises(edgeq.SpecError, match=r"'encoder\.stem' is called from outside of the forward of 'encoder'"):
        edgeq.PTCFxModule(Around("method", False), submodules=["encoder"], example_inputs=images())
