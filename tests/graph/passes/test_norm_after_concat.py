"""A batch norm over a concatenation of layers goes into each of them, over its own channels."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules.norm_slice import NormSlice
from tests.graph.parity import calibrated, images
from tests.graph.passes.networks import (
    assert_files_agree,
    assert_same_function,
    assert_trains_as_float,
    changes,
    kinds,
    layers_of,
    lively,
    only,
)

NAME = "norm_after_concat"


class Branches(nn.Module):
    """Layers side by side, a norm over all of their channels, and its activation."""

    def __init__(self, branches, norm, act=None, dim=1):
        super().__init__()
        self.branches, self.norm, self.act, self.dim = nn.ModuleList(branches), norm, act, dim

    def forward(self, x):
        y = self.norm(torch.cat([branch(x) for branch in self.branches], self.dim))
        return y if self.act is None else self.act(y)


def convolutions(act=None, **options):
    torch.manual_seed(0)
    branches = [nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(3, 2, 3, padding=1)]
    return lively(Branches(branches, nn.BatchNorm2d(12, **options), act, dim=-3 if options else 1))


MAKERS = {
    "2d": (convolutions, (4, 3, 8, 8)),
    "relu": (lambda: convolutions(nn.ReLU()), (4, 3, 8, 8)),
    "relu6": (lambda: convolutions(nn.ReLU6(inplace=True)), (4, 3, 8, 8)),
    "no affine, from the last": (lambda: convolutions(affine=False), (4, 3, 8, 8)),
    "1d": (lambda: _seeded(nn.BatchNorm1d(7), nn.Conv1d(3, 4, 1), nn.Conv1d(3, 3, 3, padding=1)), (4, 3, 9)),
    "3d": (lambda: _seeded(nn.BatchNorm3d(7), nn.Conv3d(3, 4, 1), nn.Conv3d(3, 3, 1)), (4, 3, 4, 4, 4)),
    "linear": (lambda: _seeded(nn.BatchNorm1d(7), nn.Linear(3, 4), nn.Linear(3, 3)), (16, 3)),
}


def _seeded(norm, *branches):
    torch.manual_seed(0)
    for branch in branches:
        branch.reset_parameters()
    return lively(Branches(branches, norm))


@pytest.mark.parametrize("case", MAKERS)
def test_each_layer_takes_in_its_part_of_the_norm_and_the_activation(case):
    make, shape = MAKERS[case]
    wrapped = assert_same_function(make, NAME, images(*shape))
    layers = layers_of(wrapped)
    parts = [layer.site.norm for layer in layers]
    assert all(type(part) is NormSlice and part.owner is wrapped.module.norm for part in parts)
    assert [part.channels.stop - part.channels.start for part in parts] == [
        layer.operation.channels(layer.weight) for layer in layers
    ]
    floor, ceiling = {"relu": (0.0, None), "relu6": (0.0, 6.0)}.get(case, (None, None))
    assert all((layer.site.floor, layer.site.ceiling) == (floor, ceiling) for layer in layers)
    assert len({layer.site.target for layer in layers}) == 1
    assert kinds(wrapped) == [*(type(layer).__name__ for layer in layers), "cat"]
    assert len(wrapped.module.quantizers()) == 2


@pytest.mark.parametrize("case", ["2d", "relu", "no affine, from the last", "linear"])
def test_the_users_norm_trains_through_its_parts(case):
    make, shape = MAKERS[case]
    assert_trains_as_float(make, NAME, *shape, similar=0.95)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_batches_are_counted_once(momentum):
    model, reference = convolutions(momentum=momentum).train(), convolutions(momentum=momentum).train()
    wrapped = edgeq.QATFxModule(model, total_epochs=4, num_observer_update_epochs=0, rewrites=only(NAME)).train()
    for seed in range(3):
        wrapped(images(seed=seed))
        reference(images(seed=seed))
    assert int(model.norm.num_batches_tracked) == int(reference.norm.num_batches_tracked) == 3
    assert torch.allclose(model.norm.running_mean, reference.norm.running_mean, atol=1e-6)
    assert torch.allclose(model.norm.running_var, reference.norm.running_var, rtol=1e-5)
    wrapped.freeze()
    wrapped(images())
    assert int(model.norm.num_batches_tracked) == 3


def test_a_checkpoint_without_metadata_loads_strictly():
    wrapped = edgeq.PTCFxModule(convolutions(), rewrites=only(NAME))
    state = dict(convolutions().state_dict())
    other = {**dict(wrapped.module.state_dict()), **state}
    assert wrapped.module.load_state_dict(other, strict=True).missing_keys == []
    assert wrapped.load_weights(state).unexpected == []


def test_what_is_kept_of_a_layer_follows_the_parameters_of_the_norm():
    x = images()
    wrapped = calibrated(convolutions(), x, rewrites=only(NAME))
    with torch.no_grad():
        first = wrapped(x)
        layer = layers_of(wrapped)[0]
        kept = layer._cache["exact"][2]
        wrapped(x)
        assert layer._cache["exact"][2] is kept  # views of the same tensors are no change
        wrapped.module.norm.bias[:4] += 0.5
        assert not torch.equal(wrapped(x)[:, :4], first[:, :4])
        assert torch.equal(wrapped(x)[:, 4:], first[:, 4:])


def test_bias_calibration_moves_each_part_of_the_norms_bias_by_itself():
    x = images(16, 3, 8, 8)
    expected = convolutions()(x).mean((0, 2, 3))
    wrapped = calibrated(convolutions(), x, preset="WC4_AT8", rewrites=only(NAME))
    assert all(layer.bias_shift.abs().max() > 0 for layer in layers_of(wrapped))
    plain = calibrated(convolutions(), x, preset="WC4_AT8", rewrites=only(NAME), bias_calibration_factor=0)
    errors = [(network(x).mean((0, 2, 3)) - expected).abs().max() for network in (wrapped, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_half_of_the_activations_are_rounded():
    """Without it, the concatenation and the norm each have a range; with it, there is one."""
    x = images(16, 3, 8, 8)
    expected = convolutions(nn.ReLU())(x)
    errors = [(calibrated(convolutions(nn.ReLU()), x, rewrites=only(NAME, wanted))(x) - expected).norm()
              for wanted in (True, False)]  # fmt: skip
    assert errors[0] < errors[1]


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
def test_files_agree(preset, tmp_path):
    x = images(4, 3, 8, 8)
    wrapped = calibrated(convolutions(nn.ReLU()), x, preset=preset, rewrites=only(NAME))
    assert_files_agree(wrapped, x, folder=tmp_path)


class Dense(nn.Module):
    """A branch that is the input, or that somebody else reads."""

    def __init__(self, reads_again):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(6)
        self.reads_again = reads_again

    def forward(self, x):
        first = self.a(x) if self.reads_again else x
        y = self.norm(torch.cat([first, self.b(x)], 1))
        return y + first.mean() if self.reads_again else y


def _cat_of(*branches, norm, dim=1):
    return Branches(branches, norm, dim=dim).eval()


@pytest.mark.parametrize("model", [
    Dense(False).eval(),
    Dense(True).eval(),
    _cat_of(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), norm=nn.BatchNorm2d(8)),
    _cat_of(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), dim=2),
    _cat_of(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(8, track_running_stats=False)),
    _cat_of(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), norm=nn.SyncBatchNorm(8)),
    _cat_of(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), norm=nn.GroupNorm(2, 8)),
], ids=["input", "read again", "activation", "rows", "no statistics", "synchronized", "group norm"])  # fmt: skip
def test_what_is_no_norm_over_all_channels_of_layers_stays(model):
    assert changes(model, NAME) == ()
