"""Whether codes or real numbers go from layer to layer is seen by nobody."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import edgeq
from edgeq.modules.handover import MARK, nobody_looks
from edgeq.modules.integer import IntegerLayer
from edgeq.modules.layer import QuantizedLayer
from tests.networks import NETWORKS, batches, network

IMAGE = batches(1, seed=9)[0]


def chain(seed=0):
    """Convolutions that hand codes to each other; the last one's output is flattened for a linear layer."""
    torch.manual_seed(seed)
    first, second, third = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU6(), third, nn.Flatten(), nn.Linear(4 * 14 * 14, 5))


def prepared(model, preset="WC8_AT8"):
    return edgeq.PTCFxModule(model, preset).calibrate(batches())


def outputs(wrapped, image=IMAGE):
    with torch.no_grad():
        return wrapped(image)


def given_by(wrapped):
    """What each layer gives, as its forward returns it."""
    seen = {}
    for name, layer in wrapped.module.named_modules():
        if isinstance(layer, QuantizedLayer):
            forward = layer.forward
            layer.forward = lambda x, name=name, forward=forward: seen.setdefault(name, forward(x))
    outputs(wrapped)
    return seen


def test_layers_that_only_layers_read_hand_over_codes():
    seen = given_by(prepared(chain()))
    marks = {name: hasattr(value, MARK) for name, value in seen.items()}
    assert marks == {"0": True, "2": True, "4": False, "6": False}  # 4 is flattened, 6 is the output
    codes = seen["0"]
    assert torch.equal(codes, codes.round())
    assert 1 < codes.abs().max() <= 255


@pytest.mark.parametrize("preset", ["WC8_AT8", "WC8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("make", [chain, *(lambda name=name: network(name) for name in NETWORKS)])
def test_a_hook_on_any_module_sees_real_numbers_and_changes_nothing(make, preset):
    wrapped = prepared(make(), preset)
    expected = outputs(wrapped)
    for layer in wrapped.module.quantized_layers():
        seen = []
        handle = layer.register_forward_hook(lambda _, args, output, seen=seen: seen.extend([*args, output]))
        assert torch.equal(outputs(wrapped), expected)
        handle.remove()
        source, target = layer.site.source, layer.site.target
        for value, quantizer in zip(seen, (source, target), strict=True):
            if quantizer is not None:
                assert torch.equal(value, (value / quantizer.scale).round() * quantizer.scale)
                assert value.abs().max() <= 255 * quantizer.scale


def test_converted_layers_give_a_hook_codes_of_their_type():
    wrapped = prepared(chain())
    converted = wrapped.convert()
    expected = outputs(converted)
    for name, layer in converted.module.named_modules():
        if isinstance(layer, IntegerLayer):
            seen = []
            layer.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output))
            assert torch.equal(outputs(converted), expected)
            assert seen[0].dtype == torch.uint8, name
            real = (seen[0].float() - layer.target.zero_point) * layer.target.scale
            simulated = []
            hook = wrapped.module.get_submodule(name).register_forward_hook(lambda _, args, y, s=simulated: s.append(y))
            outputs(wrapped)
            hook.remove()
            assert torch.equal(real, simulated[0])


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_a_hook_on_all_modules_sees_real_numbers(register):
    wrapped = prepared(chain())
    expected = outputs(wrapped)
    greatest = []

    def look(module, args, *output):
        if isinstance(module, QuantizedLayer):
            greatest.extend(value.abs().max().item() for value in (*args, *output))

    handle = register(look)
    found = outputs(wrapped)
    handle.remove()
    assert torch.equal(found, expected)
    assert len(greatest) >= 4
    assert max(greatest) < 6.1  # codes would go up to 255
    assert nobody_looks(wrapped.module.quantized_layers()[0], wrapped.module.quantized_layers()[0].readers)


@pytest.mark.parametrize("which", ["giver's output", "reader's input"])
def test_what_a_hook_changes_reaches_the_next_layer(which):
    wrapped = prepared(chain())
    first, second = wrapped.module.quantized_layers()[:2]
    step = first.site.target.scale

    def more(value):
        return value + 3 * step  # stays on the grid, and is clipped by nobody

    if which == "giver's output":
        handle = first.register_forward_hook(lambda _, args, output: more(output))
    else:
        handle = second.register_forward_pre_hook(lambda _, args: (more(args[0]),))
    changed = outputs(wrapped)
    handle.remove()
    plain = outputs(wrapped)
    with torch.no_grad():
        x = first(wrapped.module.quantization.tensors.input_1(IMAGE))
        x = getattr(x, MARK).scale * x
        expected = wrapped.module.quantized_layers()[3](
            wrapped.module.quantized_layers()[2](second(more(x))).flatten(1)
        )
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, plain)


def test_a_layer_that_records_or_trains_behind_one_that_hands_over_still_reads_real_numbers():
    wrapped = prepared(chain())
    expected = outputs(wrapped)
    second, seen = wrapped.module.quantized_layers()[1], []
    second.recorder = lambda layer, x, output: seen.append(x) or output
    found = outputs(wrapped)
    assert seen[0].max() <= 255 * second.site.source.scale
    assert torch.allclose(found, expected, atol=3 * wrapped.module.quantized_layers()[3].site.target.scale.item())


def test_copies_hand_over_within_themselves():
    wrapped = prepared(chain())
    twin = copy.deepcopy(wrapped)
    expected = outputs(wrapped)
    assert twin.module.quantized_layers()[0].readers == [twin.module.quantized_layers()[1]]
    seen = []
    twin.module.quantized_layers()[1].register_forward_hook(
        lambda _, args, output: seen.append(args[0].abs().max().item())
    )
    assert torch.equal(outputs(twin), expected)
    assert torch.equal(outputs(wrapped), expected)
    assert len(seen) == 1
    assert seen[0] < 10
