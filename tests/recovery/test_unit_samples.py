"""What units learn from is what the networks really give, in bounded memory."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.recovery import unit_samples
from edgeq.recovery.unit_samples import divided, samples_of
from edgeq.recovery.units import block_units, layer_units
from tests.recovery.learning import DATA, calibrated

CALLS = [((x,), {}) for x in DATA[:4]]


def test_outputs_are_those_of_the_float_network_and_inputs_of_both():
    prepared = calibrated().module
    for unit in layer_units(prepared, CALLS[0]):
        (sample,) = samples_of(prepared, unit, CALLS[:1], with_real=True)
        seen = {}
        layer = next(layer for layer in prepared.quantized_layers() if layer.site.name == unit.name)
        hook = layer.register_forward_hook(lambda _, args, result, seen=seen: seen.update(x=args[0], y=result))
        with torch.no_grad():
            prepared.run_float(DATA[0])
            assert torch.equal(sample.outputs[0], seen["y"])
            assert torch.equal(sample.real[0], seen["x"])
            prepared.run(DATA[0])
            assert torch.equal(sample.quantized[0], seen["x"])
        hook.remove()


def test_codes_that_layers_hand_over_come_as_real_numbers():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    prepared = edgeq.PTCFxModule(chain.eval()).calibrate(DATA).module
    unit = layer_units(prepared, CALLS[0])[1]
    (sample,) = samples_of(prepared, unit, CALLS[:1], with_real=True)
    (quantized,), (real,) = sample.quantized, sample.real
    assert float((quantized - real).abs().max()) < 0.05 * float(real.max())
    steps = quantized / prepared.quantized_layers()[0].site.target.scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert float(steps.max()) > 50


def test_real_inputs_are_kept_only_where_they_are_wanted():
    prepared = calibrated().module
    unit = block_units(prepared, CALLS[0])[0]
    with_real, without = (samples_of(prepared, unit, CALLS[:1], with_real=real)[0] for real in (True, False))
    assert without.real == ()
    assert with_real.elements - without.elements == with_real.real[0].numel()


@pytest.mark.parametrize(("room", "count"), [(100, 4), (2, 2), (1, 1), (0, 1)])
def test_of_large_values_fewer_samples_are_kept(monkeypatch, room, count):
    prepared = calibrated().module
    unit = layer_units(prepared, CALLS[0])[0]
    elements = samples_of(prepared, unit, CALLS[:1], with_real=False)[0].elements
    monkeypatch.setattr(unit_samples, "ELEMENTS", room * elements)
    samples = samples_of(prepared, unit, CALLS, with_real=False)
    assert len(samples) == count
    assert [len(sample.quantized[0]) for sample in samples] == [8] * count


@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 2] * 4), (8, [8] * 4), (100, [8] * 4)])
def test_calls_are_divided(size, sizes):
    prepared = calibrated().module
    parts = divided(prepared, CALLS, size)
    assert [len(args[0]) for args, _ in parts] == sizes
    assert torch.equal(torch.cat([args[0] for args, _ in parts]), torch.cat(DATA[:4]))


def test_calls_whose_results_are_not_as_many_are_left_whole():
    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((0, 2, 3))

    prepared = edgeq.PTCFxModule(Total().eval(), bias_calibration_factor=0.0).calibrate(DATA).module
    assert divided(prepared, CALLS, 3) == CALLS


def test_nothing_of_the_network_changes_by_looking():
    prepared = calibrated("attention").module
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    with torch.no_grad():
        expected = prepared(DATA[0])
        for unit in block_units(prepared, CALLS[0]):
            samples_of(prepared, unit, CALLS, with_real=True)
        assert torch.equal(prepared(DATA[0]), expected)
    assert all(torch.equal(value, before[key]) for key, value in prepared.state_dict().items())
