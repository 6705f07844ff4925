"""Where a network is cut into layers and blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.graph.interpreter import Interpreter
from edgeq.modules.layer import QuantizedLayer
from edgeq.phase import Phase, set_phase
from edgeq.recovery.unit_samples import samples_of
from edgeq.recovery.units import WITHIN, block_units, layer_units
from tests.networks import NETWORKS, batches, network


def cut(model, x, how=block_units):
    """A calibrated network, one call of it, and its units."""
    wrapped = edgeq.PTCFxModule(model.eval(), bias_calibration_factor=0.0).calibrate([x])
    call = ((x,), {})
    return wrapped.module, call, how(wrapped.module, call)


def layers_of(prepared, unit):
    return [
        str(node.target)
        for node in unit.nodes
        if node.op == "call_module" and isinstance(prepared.get_submodule(node.target), QuantizedLayer)
    ]


def blocks_of(model, x):
    prepared, _, units = cut(model, x)
    return [layers_of(prepared, unit) for unit in units]


def test_blocks_end_where_branches_close():
    x = batches(1)[0]
    assert blocks_of(network("separable"), x) == [["stem.0"], ["expand.0", "depth.0", "project.0"], ["classifier"]]
    assert blocks_of(network("attention"), x) == [["patch"], ["qkv", "proj"], ["fc1", "fc2"], ["head"]]


def test_layers_without_branches_are_chained_by_threes():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(7)))
    assert blocks_of(model, batches(1)[0]) == [["0.0", "1.0", "2.0"], ["3.0", "4.0", "5.0"], ["6.0"]]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", [layer_units, block_units])
def test_every_layer_is_in_one_unit(name, how):
    prepared, _, units = cut(network(name), batches(1)[0], how)
    found = [path for unit in units for path in layers_of(prepared, unit)]
    assert len(found) == len(set(found)) == len(prepared.quantized_layers())
    assert how is block_units or len(units) == len(found)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_unit_gives_what_it_gives_in_the_network(name):
    """Run by itself, over the network's own modules, on what goes in there."""
    for how in (layer_units, block_units):
        prepared, call, units = cut(network(name), batches(1)[0], how)
        for unit in units:
            (sample,) = samples_of(prepared, unit, [call], with_real=True)
            set_phase(prepared, Phase.FLOAT)
            found = Interpreter(prepared.tree, graph=unit.graph).run(*sample.real)
            prepared.apply_mode()
            assert len(found) == len(sample.outputs) > 0
            assert all(map(torch.equal, found, sample.outputs)), unit.name


class LongSkips(nn.Module):
    """A U-Net whose outer branch is longer than any block may be."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))
        self.stem, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        outer = x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.last(torch.cat([x, outer], 1))


def test_a_branch_that_is_read_much_later_keeps_no_block_open():
    short, long = (blocks_of(LongSkips(depth), batches(1)[0]) for depth in (WITHIN - 2, WITHIN + 2))
    assert [len(block) for block in short] == [1, 8, 1]
    assert [len(block) for block in long] == [3, 3, 3, 3, 2]


class Dense(nn.Module):
    """All that came before is read by every layer."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return x


def test_a_dense_network_is_never_one_block():
    found = blocks_of(Dense(24), batches(1)[0])
    assert sum(map(len, found)) == 24
    assert max(map(len, found)) <= WITHIN


class Several(nn.Module):
    """Inputs that are no tensors of the batch, a constant that is quantized, and two outputs."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.one, self.two, self.three = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))

    def forward(self, x):
        size = x.shape[2]
        y = F.relu(self.one(x)) + self.place
        first = self.two(y)
        return first, self.three(y).reshape(-1, 4, size * size)


def test_constants_belong_to_the_unit_and_sizes_are_inputs():
    _, _, units = cut(Several(), batches(1)[0])
    assert [unit.name for unit in units] == ["one .. three"]
    (place,) = [node for node in units[0].nodes if node.op == "get_attr"]
    assert place not in units[0].moving
    _, _, units = cut(Several(), batches(1)[0], layer_units)
    assert [unit.name for unit in units] == ["one", "two", "three"]
    assert [len(unit.inputs) for unit in units] == [1, 1, 1]


def test_all_that_is_read_outside_is_an_output():
    _, _, (unit,) = cut(Several(), batches(1)[0])
    assert [tuple(node.users) != () for node in unit.outputs] == [True, True]


def test_what_follows_the_last_layer_belongs_to_no_block():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.one(x).mean((2, 3)).argmax(1)

    _, _, (unit,) = cut(Picked(), batches(1)[0])
    assert not {"mean", "argmax"} & {str(node.target) for node in unit.nodes}
