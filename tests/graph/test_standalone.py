"""Submodules that are quantized by themselves inside of a network that is quantized as one graph."""

import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq import QConfigMapping, SpecError
from tests.graph.parity import images
from tests.graph.parted import Block, calibrated, data, detector, train, training
from tests.graph.parted import Plain as Outer
from tests.states import changed, snapshot


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    """Stem, two residual blocks, head."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), Residual(8), Residual(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return Net().eval()


def wrapped(standalone, preset=None, model=None, **options):
    model = net() if model is None else model
    return edgeq.PTCFxModule(model, preset, standalone=standalone, **options).calibrate(data())


def tensors(module):
    """The names of the quantizers, those of standalone modules with their paths."""
    inner = {id(part): path for path, part in module.named_modules() if part in module.standalone()}
    found = [quantizer.name for quantizer in module.quantizers()]
    return found + [
        f"{inner[id(part)]}.{quantizer.name}" for part in module.standalone() for quantizer in part.quantizers()
    ]


@pytest.mark.parametrize("standalone", [["one"], ["one", "two"], [Residual], {"one": "WC4_AT8", "two": None}, ["head"]])
def test_the_integer_network_is_the_simulation_and_the_file_is_both(standalone, tmp_path):
    made = wrapped(standalone)
    x = data()[0]
    found, expected = made(x), net()(x)
    four = isinstance(standalone, dict)
    assert 0 < (found - expected).norm() < (0.3 if four else 0.05) * expected.norm()
    converted = made.convert()
    assert torch.equal(converted(x), found)
    files = [{}, {"format": "integer"}]
    for options in [*files, {"opset_version": 18, "dynamic_batch": True}] if standalone == ["one", "two"] else files:
        assert converted.export(x, tmp_path / "model.onnx", **options).passed
    assert all(parity.passed for parity in made.verify(tmp_path / "model.onnx", x))


def test_a_standalone_module_reads_and_gives_real_numbers_with_quantizers_of_its_own():
    module = wrapped(["one"]).module
    assert tensors(module) == [
        "x",
        "stem",
        "one",
        "two_conv",
        "two_add",
        "mean",
        "head",
        "one.x",
        "one.conv",
        "one.add",
    ]
    whole = wrapped(None).module
    assert "one" not in tensors(whole)
    assert [layer.site.name for layer in module.quantized_layers()] == ["stem", "two.conv", "head"]
    (part,) = module.standalone()
    assert [layer.site.name for layer in part.quantized_layers()] == ["conv"]
    assert part is module.get_submodule("one")


def test_its_table_and_that_of_the_network_are_both_told():
    table = wrapped(["one"]).explain()
    lines = table.splitlines()
    (row,) = [line for line in lines if line.startswith("one ") and "stays float" in line]
    assert row.endswith("stays float: it is quantized by itself")
    inner = table.partition("\n\none (Residual)\n")[2]
    assert inner.splitlines()[0].split() == ["node", "weight", "folded", "value"]
    assert "conv" in inner
    assert "8 bits symmetric channel free" in inner


def test_float_keys_and_parameters_stay():
    model = net()
    made = edgeq.PTCFxModule(model, standalone=[Residual])
    state = made.module.state_dict()
    assert {key: value.shape for key, value in state.items() if key in model.state_dict()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert {id(parameter) for parameter in made.parameters()} == {id(parameter) for parameter in model.parameters()}
    assert not [module for module in model.modules() if type(module).__module__.startswith("edgeq")]


def test_it_follows_the_modes_of_the_network_around_it_and_not_its_own():
    made = training(Outer, standalone=["head"])
    head = made.module.get_submodule("head")
    assert (made.training, head.training) == (True, True)
    head.eval()
    assert head.training
    made.eval()
    assert not head.training
    head.train()
    assert not head.training
    before = snapshot(made)
    made(data()[0])
    assert changed(before, made) == []


def test_training_moves_ranges_statistics_and_weights_inside_of_it():
    made = training(Outer, standalone=["head"])
    before = snapshot(made)
    train(made)
    moved = {key.removeprefix("module.") for key in changed(before, made)}
    assert {"head.hidden.conv.weight", "head.hidden.norm.running_mean", "backbone.stem.conv.weight"} <= moved
    assert [key for key in moved if key.startswith("head.quantization.tensors.")]
    made.eval()
    assert torch.equal(made(data()[0]), made.convert()(data()[0]))


def test_biases_are_calibrated_inside_of_it_and_around_it():
    biased, plain = (
        calibrated(Outer, standalone=["head"]),
        calibrated(Outer, standalone=["head"], bias_calibration_factor=0),
    )
    shifts = {key for key in changed(snapshot(plain), biased) if key.endswith("bias_shift")}
    assert {"module.head.out.bias_shift", "module.backbone.stem.conv.bias_shift"} <= shifts
    x = torch.cat(data())
    with torch.no_grad():
        errors = [(module(x) - detector(Outer)(x)).mean((0, 2)).norm() for module in (biased, plain)]
    assert errors[0] < errors[1]


# ---- settings


def test_each_has_the_settings_that_are_given_with_it():
    module = wrapped({"one": "WC4_AT8", "two": None}, "WC8P2_AT8P2").module
    assert [part.qconfig.name for part in module.standalone()] == ["WC4_AT8", "WC8P2_AT8P2"]
    bits = [
        layer.weight_quantizer.spec.bits for part in (*module.standalone(), module) for layer in part.quantized_layers()
    ]
    assert bits == [4, 8, 8, 8]


def mapping(*entries):
    made = QConfigMapping().set_global("DEFAULT")
    for name, preset in entries:
        made.set_module_name(name, preset)
    return made.qconfig()


def bits(module):
    found = {layer.site.name: layer.weight_quantizer.spec.bits for layer in module.quantized_layers()}
    for path, part in module.named_modules():
        if part in module.standalone():
            found |= {
                f"{path}.{layer.site.name}": layer.weight_quantizer.spec.bits for layer in part.quantized_layers()
            }
    return found


def test_rules_reach_into_it_under_the_networks_preset():
    module = wrapped(["one"], mapping(("one.conv", "WC4_AT8"), ("two", "WC4_AT8"))).module
    assert bits(module) == {"stem": 8, "two.conv": 4, "head": 8, "one.conv": 4}
    whole = wrapped(["one"], mapping(("one", "WC4_AT8"))).module
    assert bits(whole)["one.conv"] == 4
    with pytest.raises(SpecError, match=r"^The rule for 'one.conv' fits no layer of the model"):
        wrapped({"one": "WC8_AT8"}, mapping(("one.conv", "WC4_AT8")))
    with pytest.raises(SpecError, match=r"^In the part 'one': The rule for 'one.conw' fits no layer"):
        wrapped(["one"], mapping(("one.conw", "WC4_AT8")))
    with pytest.raises(SpecError, match="The rule for 'two' lies in none of the parts that are quantized: one"):
        wrapped({"one": mapping(("two", "WC4_AT8"))})


def test_the_edges_of_a_mixed_preset_are_those_of_the_network_and_of_each_standalone_module():
    module = edgeq.PTCFxModule(net(), "WC4_AT8+WC8_AT8", standalone=["one"]).module
    assert bits(module) == {"stem": 8, "two.conv": 4, "head": 8, "one.conv": 8}


def test_what_is_left_whole_inside_of_it_is_named_from_the_whole():
    module = wrapped(["backbone"], model=detector(Outer), untraced=["backbone.down"]).module
    assert {"entry", "head.out", "backbone.stem.conv"} <= set(bits(module))
    assert "backbone.down.conv" not in bits(module)


def test_a_module_that_cannot_be_captured_is_refused_by_its_name():
    class Odd(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = net()
    model.one = Odd(8, 8, 1)
    with pytest.raises(edgeq.TraceError, match=r"^In the part 'one': The model cannot be traced"):
        edgeq.PTCFxModule(model, standalone=["one"])


# ---- what it gives and takes


def test_a_standalone_module_that_gives_a_dict_and_one_that_is_called_twice(tmp_path):
    made = calibrated(Outer, standalone=["backbone", "head"])
    x = data()[0]
    converted = made.convert()
    assert torch.equal(made(x), converted(x))
    assert (made(x) - detector(Outer)(x)).norm() < 0.05 * detector(Outer)(x).norm()
    result = made.export(x, tmp_path / "model.onnx")
    assert result.passed
    assert result.nodes["Conv"] == 1 + 2 + 2 * 2


def test_a_standalone_module_at_two_paths_is_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.last = Block(3, 3), nn.Conv2d(3, 3, 1)
            self.b = self.a

        def forward(self, x):
            return self.last(self.b(self.a(x)))

    torch.manual_seed(0)
    model = Twice().eval()
    made = edgeq.PTCFxModule(model, standalone=["b"]).calibrate([images()])
    assert len(made.module.standalone()) == 1
    assert torch.equal(made(images()), made.convert()(images()))
    assert (made(images()) - model(images())).norm() < 0.05 * model(images()).norm()


def test_a_network_of_standalone_modules_alone_has_nothing_else_to_quantize():
    with pytest.raises(SpecError, match="has no layer that can be quantized"):
        edgeq.PTCFxModule(nn.Sequential(Residual(3), nn.ReLU()), standalone=["0"])
