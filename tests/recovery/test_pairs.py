"""Which channels follow which, through what lies in between, and why others are left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.recovery.pairs import find_pairs
from tests.networks import network
from tests.recovery.uneven import DATA, calibrated


def pairs_of(model, x=DATA[0], preset="WC8_AT8"):
    wrapped = calibrated(model, preset, [x])
    return find_pairs(wrapped.module, ((x,), {}))


def names(found):
    return [(pair.source.name, *(reader.layer.site.name for reader in pair.readers)) for pair in found.found]


def test_a_residual_block_has_the_pair_inside_of_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = self.one(x)
            return x + self.three(F.relu(self.two(x)))

    found = pairs_of(Block())
    assert names(found) == [("two", "three")]
    assert found.skipped == {"one": "add reads it", "three": "add reads it"}


def test_a_depthwise_layer_is_the_middle_of_a_triple_and_an_expansion_of_channels_has_its_pairs():
    found = pairs_of(network("separable"))
    assert names(found) == [("expand.0", "depth.0"), ("depth.0", "project.0")]
    assert found.skipped["stem.0"] == found.skipped["project.0"] == "add reads it"
    assert found.found[0].readers[0].channels.tolist() == list(range(16))


def test_norms_of_a_transformer_are_sources_but_what_a_gelu_reads_is_none():
    found = pairs_of(network("attention"))
    assert names(found) == [("norm1", "qkv"), ("norm2", "fc1")]
    assert "matmul" in found.skipped["qkv"]
    assert "gelu" in found.skipped["fc1"]
    assert found.skipped["head"] == "the network returns it"


class Between(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between, second=None, channels=4):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between if isinstance(between, nn.Module) else None
        self.function = between
        self.second = second or nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(self.function(x) if self.between is None else self.between(x))


def rows_of(count, each):
    return [channel for channel in range(count) for _ in range(each)]


KEEP = {
    "relu": (nn.ReLU(), None, [0, 1, 2, 3], (True, True)),
    "nothing": (nn.Identity(), None, [0, 1, 2, 3], (True, True)),
    "leaky relu": (nn.LeakyReLU(0.1), None, [0, 1, 2, 3], (False, True)),
    "prelu of each channel": (nn.PReLU(4), None, [0, 1, 2, 3], (False, True)),
    "max pool": (nn.MaxPool2d(2), None, [0, 1, 2, 3], (True, True)),
    "average pool": (nn.AvgPool2d(2), None, [0, 1, 2, 3], (True, True)),
    "padded average pool": (nn.AvgPool2d(3, 2, 1), None, [0, 1, 2, 3], (False, False)),
    "dropout": (nn.Dropout(0.5), None, [0, 1, 2, 3], (True, True)),
    "flatten": (nn.Sequential(nn.MaxPool2d(8), nn.Flatten()), nn.Linear(16, 2), rows_of(4, 4), (True, True)),
    "mean": (lambda x: x.mean((2, 3)), nn.Linear(4, 2), [0, 1, 2, 3], (True, True)),
    "view": (lambda x: x[:, :, :2, 0].reshape(x.size(0), -1), nn.Linear(8, 2), rows_of(4, 2), (True, True)),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), nn.Linear(4, 2), [0, 1, 2, 3], (True, True)),
    "shuffle": (nn.ChannelShuffle(2), None, [0, 2, 1, 3], (True, True)),
    "pixel shuffle": (nn.PixelShuffle(2), nn.Conv2d(1, 2, 1), None, (False, False)),
    "padding": (lambda x: F.pad(x, (1, 1, 1, 1)), None, [0, 1, 2, 3], (False, False)),
    "zeros padded by the layer": (nn.Identity(), nn.Conv2d(4, 2, 3, padding=1), [0, 1, 2, 3], (False, False)),
    "more channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), nn.Conv2d(6, 2, 1), [-1, 0, 1, 2, 3, -1], (True, True)),
    "some channels": (lambda x: x[:, 1:3], nn.Conv2d(2, 2, 1), [1, 2], (True, True)),
    "upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), None, [0, 1, 2, 3], (True, True)),
    "twice": (lambda x: torch.cat([x, F.relu(x)], 1), nn.Conv2d(8, 2, 1), [0, 1, 2, 3, 0, 1, 2, 3], (False, True)),
    "transposed": (nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2), [0, 1, 2, 3], (False, False)),
    "groups": (nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), [0, 1, 2, 3], (True, True)),
}


@pytest.mark.parametrize("name", KEEP)
def test_what_lies_between_two_layers_is_followed_channel_by_channel(name):
    between, second, channels, (any_offsets, positive) = KEEP[name]
    found = pairs_of(Between(between, second))
    if channels is None:
        assert found.skipped["first"] == "what it is read through mixes its channels"
        return
    ((reader,),) = (pair.readers for pair in found.found)
    assert reader.channels.tolist() == channels
    assert (reader.takes_offsets, reader.takes_positive) == (any_offsets, positive)


STOP = {
    "gelu": nn.GELU(),
    "sigmoid": nn.Sigmoid(),
    "hardswish": nn.Hardswish(),
    "relu6 behind a pool": nn.Sequential(nn.MaxPool2d(2), nn.ReLU6()),
    "softmax": nn.Softmax(1),
    "added number": lambda x: x + 1,
    "squares": lambda x: x * x,
    "padding with ones": lambda x: F.pad(x, (1, 1), value=1.0),
    "mean of channels": lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1),
    "places": lambda x: torch.where(x > 0.1, x, 0.0),
}


@pytest.mark.parametrize("name", STOP)
def test_what_bends_or_mixes_channels_ends_the_search(name):
    found = pairs_of(Between(STOP[name]))
    assert not found.found
    assert "first" in found.skipped


def test_several_layers_may_read_one_source():
    class Fire(nn.Module):
        def __init__(self):
            super().__init__()
            self.squeeze, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 2, 1)
            self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x):
            x = F.relu(self.squeeze(x))
            return self.last(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1))

    found = pairs_of(Fire())
    assert names(found) == [("squeeze", "left", "right"), ("left", "last"), ("right", "last")]
    assert [pair.readers[0].channels.tolist() for pair in found.found[1:]] == [[0, 1, -1, -1, -1], [-1, -1, 0, 1, 2]]


def test_shared_and_computed_parameters_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.norm = nn.Conv2d(3, 3, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
            self.last = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.twice(F.relu(self.twice(x)))
            return self.last(F.relu(self.norm(F.relu(x))))

    found = pairs_of(Shared())
    assert not found.found
    assert found.skipped["twice"] == "it shares parameters with another call"
    assert found.skipped["norm"] == "its parameters are computed"


def test_a_tied_embedding_is_no_weight_to_change():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.norm(self.table(x)))

    found = pairs_of(Tied(), torch.arange(6)[None])
    assert not found.found
    assert found.skipped["norm"] == "it shares parameters with another call"


def test_rows_that_layers_have_of_one_parameter_are_not_shared():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4))
            self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x):
            x = F.relu(F.linear(self.norm(x), self.weight[:4]))
            return self.last(F.relu(F.linear(x, self.weight[4:])))

    assert len(pairs_of(Halves(), torch.randn(3, 4)).found) == 3


def test_a_batch_norm_in_front_of_the_reader_and_a_norm_without_weight_are_left_alone():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
            self.bare, self.last = nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(F.relu(self.bare(self.two(F.relu(self.one(x))))))

    found = pairs_of(Norms().eval())
    assert names(found) == [("one", "two")]
    assert found.skipped["two"] == "its batch norm has no weight and bias"


def test_a_group_norm_with_an_activation_that_its_quantizer_takes_over_is_a_source():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    (pair,) = pairs_of(model).found
    assert (pair.source.name, pair.readers[0].channels.tolist()) == ("1", [0, 1, 2, 3])
    assert (pair.readers[0].takes_positive, pair.readers[0].takes_offsets) == (True, False)
