"""The integer network: integers between its layers, the numbers of the simulation, nothing shared with it."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import CalibrationError
from edgeq.modules.integer import IntegerLayer
from tests.graph.parity import assert_exact, calibrated, images
from tests.networks import NETWORKS, batches, network
from tests.test_presets import CALIBRATED


@pytest.mark.parametrize("preset", ["DEFAULT", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_seeds_of_each_network_convert_exactly(name, preset):
    for seed in range(20):
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(1, seed))
        assert_exact(wrapped, batches(1, seed + 1)[0])


@pytest.mark.sweep
@pytest.mark.parametrize("preset", ["DEFAULT", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_seeds_of_each_network_convert_exactly(name, preset, hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        wrapped = edgeq.PTCFxModule(network(name, seed), preset).calibrate(batches(1, seed))
        assert_exact(wrapped, batches(1, seed + 1)[0])


@pytest.mark.parametrize("preset", CALIBRATED)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_preset_converts_exactly(name, preset):
    wrapped = edgeq.PTCFxModule(network(name), preset).calibrate(batches())
    assert_exact(wrapped, batches(1, seed=4)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_between_layers_is_an_integer_with_the_simulations_value(name):
    wrapped, x = edgeq.PTCFxModule(network(name)).calibrate(batches()), batches(1, seed=4)[0]
    converted = wrapped.convert().module
    seen = {}
    for path, module in converted.named_modules():
        if isinstance(module, IntegerLayer):
            hook = lambda module, args, output, path=path: seen.__setitem__(path, (module, output.clone()))  # noqa: E731
            module.register_forward_hook(hook)
            assert (module.weight.dtype, module.bias.dtype) == (torch.int8, torch.int32)
    simulated = {}
    for path, module in wrapped.module.named_modules():
        if path in [p for p, m in converted.named_modules() if isinstance(m, IntegerLayer)]:
            hook = lambda module, args, output, path=path: simulated.__setitem__(path, output.clone())  # noqa: E731
            module.register_forward_hook(hook)
    assert_exact(wrapped, x)
    with torch.no_grad():
        converted(x)
    assert len(seen) == len(wrapped.module.quantized_layers())
    for path, (module, codes) in seen.items():
        assert codes.dtype in (torch.uint8, torch.int8)
        assert torch.equal(module.target.decode(codes), simulated[path]), path


def test_the_original_stays_usable_and_nothing_is_shared():
    wrapped, x = edgeq.PTCFxModule(network("residual")).calibrate(batches()), batches(1)[0]
    before = copy.deepcopy(wrapped.state_dict())
    with torch.no_grad():
        expected = wrapped(x)
        converted = wrapped.convert()
        own = {value.data_ptr() for value in (*wrapped.parameters(), *wrapped.buffers())}
        assert not own & {value.data_ptr() for value in (*converted.parameters(), *converted.buffers())}
        for value in converted.buffers():
            value.zero_()
        assert torch.equal(wrapped(x), expected)
    assert all(torch.equal(wrapped.state_dict()[key], value) for key, value in before.items())
    assert not wrapped.training


def test_converting_while_training_leaves_the_training_as_it_was():
    torch.manual_seed(0)
    wrapped = edgeq.QATFxModule(network("residual").train(), total_epochs=4).train()
    wrapped(batches(1)[0])
    twin = copy.deepcopy(wrapped)
    wrapped.convert()
    assert wrapped.training
    assert wrapped.module.bn1.training
    assert [module.training for module in wrapped.modules()] == [module.training for module in twin.modules()]
    for module in (wrapped, twin):
        torch.manual_seed(1)
        module.loss = module(batches(1, seed=1)[0]).sum()
    assert torch.equal(wrapped.loss, twin.loss)


def test_converting_twice_gives_the_same_and_a_converted_network_is_its_own():
    wrapped, x = edgeq.PTCFxModule(network("separable")).calibrate(batches()), batches(1)[0]
    first, second = wrapped.convert(), wrapped.convert()
    assert torch.equal(first(x), second(x))
    assert first.convert() is first


def test_a_converted_network_has_no_parameters_and_stays_in_evaluation():
    converted = edgeq.PTCFxModule(network("residual")).calibrate(batches()).convert()
    x = batches(1)[0]
    assert list(converted.parameters()) == []
    expected = converted(x)
    converted.train()
    assert not any(module.training for module in converted.module.children())
    assert torch.equal(converted(x), expected)
    assert not expected.requires_grad


def test_without_ranges_nothing_is_converted():
    wrapped = edgeq.PTCFxModule(network("residual"))
    with pytest.raises(CalibrationError, match=r"no ranges yet: run at least one batch in train\(\) mode"):
        wrapped.convert()
    with pytest.raises(CalibrationError, match="no ranges yet"):
        wrapped.eval().convert()


def test_operations_lists_each_integer_tensor_in_the_order_of_the_data():
    converted = edgeq.PTCFxModule(network("separable")).calibrate(batches(1)).convert().module
    assert list(converted.operations.values()) == [
        *("quantize", "conv2d", "conv2d", "conv2d", "conv2d", "add", "avg_pool", "moved", "linear"),
    ]
    assert converted.tensors == tuple(converted.operations)


@pytest.mark.parametrize("batch", [1, 3, 0])
def test_any_batch_size_also_none(batch):
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate(batches())
    (found,) = assert_exact(wrapped, batches(1)[0][:1].expand(batch, -1, -1, -1))
    assert found.shape == (batch, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_order_of_memory_of_the_input_does_not_matter(layout):
    wrapped, x = edgeq.PTCFxModule(network("separable")).calibrate(batches()), batches(1)[0]
    with torch.no_grad():
        expected = wrapped(x)
        (found,) = assert_exact(wrapped, x.contiguous(memory_format=layout))
        assert torch.equal(found, expected)
        (strided,) = assert_exact(wrapped, x.repeat(1, 1, 2, 2)[:, :, :16, :16])
        assert torch.equal(strided, expected)


def test_constants_are_kept_as_integers():
    class WithTable(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.table = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4) * 5)

        def forward(self, x):
            return torch.cat([self.linear(x), self.table]) @ self.table.mT

    wrapped = calibrated(WithTable().eval(), images(3, 4))
    converted = wrapped.convert().module
    assert_exact(wrapped, images(3, 4))
    (table,) = (value for key, value in converted.named_buffers() if "constants" in key)
    assert table.dtype in (torch.uint8, torch.int8)
    layers = [module for module in converted.modules() if isinstance(module, IntegerLayer)]
    assert [layer.weight.dtype for layer in layers] == [torch.int8] * 2  # the product with the table is one


def test_constants_of_one_range_are_kept_apart():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = (nn.Parameter(torch.randn(1, 1, 8)) for _ in range(2))
            self.long = nn.Parameter(torch.randn(1, 3, 8))
            self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            tokens = [token.expand(x.size(0), -1, -1) for token in (self.first, self.second, self.long, self.first)]
            return self.last(torch.cat([*tokens, self.fc(x)], 1))

    wrapped = calibrated(Tokens().eval(), images(2, 5, 8))
    converted = wrapped.convert()
    assert_exact(wrapped, images(2, 5, 8))
    kept = [value for key, value in converted.named_buffers() if "constants" in key]
    assert [tuple(value.shape) for value in kept] == [(1, 1, 8), (1, 1, 8), (1, 3, 8)]
    assert not torch.equal(kept[0], kept[1])


def test_gradients_being_recorded_changes_no_power_of_two_number():
    wrapped, x = edgeq.PTCFxModule(network("residual"), "WT8SYMP2_AT8SYMP2").calibrate(batches()), batches(1)[0]
    with_gradients = wrapped(x)
    assert with_gradients.requires_grad
    with torch.no_grad():
        assert torch.equal(with_gradients, wrapped(x))


def test_what_no_output_depends_on_is_left_out():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.stem(x)
            torch.relu(self.auxiliary(y) * 2)
            return self.head(y)

    wrapped = calibrated(WithLoss().eval(), images(3, 4))
    assert_exact(wrapped, images(3, 4))
    converted = wrapped.convert().module
    assert list(converted.operations.values()) == ["quantize", "linear", "linear"]
    assert [node.target for node in converted.fx_graph.nodes if node.op == "call_module"] == [
        *("quantization.tensors.x", "stem", "head", "quantization.dequantize.head_1")
    ]


def test_a_slice_of_a_split_is_a_tuple_and_not_a_tensor():
    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            parts = self.conv(x).chunk(4, 1)
            return torch.cat(parts[::-1], 1), parts[1:][0], parts[:2]

    wrapped = calibrated(Slices().eval(), images())
    found = assert_exact(wrapped, images())
    assert torch.equal(found[0][:, 6:], found[2])
    assert torch.equal(found[1], found[3])
    assert list(wrapped.convert().module.operations.values()) == ["quantize", "conv2d", "moved", "moved"]
