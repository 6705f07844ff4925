"""Converting and exporting: what comes out, and that the original stays usable before and after."""

import copy

import pytest
import torch

import edgeq
from tests.networks import NETWORKS, batches, network
from tests.states import changed, snapshot, train_step

DATA = batches(2)


def calibrated(name="residual", **options):
    return edgeq.PTCFxModule(network(name), **options).calibrate(DATA)


@pytest.mark.parametrize("name", NETWORKS)
def test_converting_twice_gives_equal_results_and_leaves_the_original_as_it_is(name):
    wrapped = calibrated(name)
    before = snapshot(wrapped)
    one, two = wrapped.convert(), wrapped.convert()
    assert changed(before, wrapped) == []
    assert changed(snapshot(one), two) == []
    assert torch.equal(one(DATA[0]), two(DATA[0]))
    assert not wrapped.training


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_survives_a_conversion(training):
    wrapped = edgeq.QATFxModule(network("residual"), total_epochs=2).train()
    wrapped(DATA[0])
    wrapped.train(training)
    modes = [module.training for module in wrapped.modules()]
    wrapped.convert()
    assert [module.training for module in wrapped.modules()] == modes


def test_training_goes_on_after_a_conversion_as_if_there_had_been_none():
    one = edgeq.QATFxModule(network("separable").train(), total_epochs=3)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
    train_step(one, optimizer, DATA[0])
    other = copy.deepcopy(one)
    one.eval().convert()
    other.eval()
    for wrapped in (one, other):
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
        train_step(wrapped.train(), optimizer, DATA[1])
    assert changed(snapshot(one), other) == []


def test_a_converted_network_shares_nothing_with_the_original():
    wrapped = calibrated()
    converted = wrapped.convert()
    output = converted(DATA[0])
    with torch.no_grad():
        for value in [*wrapped.parameters(), *wrapped.buffers()]:
            value.zero_()
    assert torch.equal(converted(DATA[0]), output)


def test_a_converted_network_holds_integers_and_nothing_to_train():
    converted = calibrated("residual").convert()
    state = converted.module.state_dict()
    types = {key: state[key].dtype for key in ("conv1.weight", "conv1.bias", "fc.weight", "fc.bias")}
    assert types == {
        "conv1.weight": torch.int8,
        "conv1.bias": torch.int32,
        "fc.weight": torch.int8,
        "fc.bias": torch.int32,
    }
    assert list(converted.parameters()) == []
    assert converted.convert() is converted
    assert [module.training for module in converted.train().module.children()] == [False] * len(
        list(converted.module.children())
    )


def test_a_converted_network_gives_the_same_in_every_mode():
    converted = calibrated().convert()
    output = converted(DATA[0])
    assert torch.equal(converted.train()(DATA[0]), output)
    assert torch.equal(converted.eval()(DATA[0]), output)
    assert converted(DATA[0][:0]).shape == (0, 5)


def test_exporting_before_or_after_converting_writes_the_same_bytes(tmp_path):
    wrapped = calibrated()
    before = snapshot(wrapped)
    wrapped.export(DATA[0], tmp_path / "before.onnx", verify=False)
    wrapped.convert().export(DATA[0], tmp_path / "converted.onnx", verify=False)
    wrapped.export(DATA[0], tmp_path / "after.onnx", verify=False)
    first = (tmp_path / "before.onnx").read_bytes()
    assert first == (tmp_path / "converted.onnx").read_bytes()
    assert first == (tmp_path / "after.onnx").read_bytes()
    assert changed(before, wrapped) == []


def test_converting_in_training_mode_finishes_the_ranges_first():
    loop, direct = (edgeq.PTCFxModule(network("residual"), bias_calibration_factor=0) for _ in range(2))
    for wrapped in (loop, direct):
        wrapped.train()
        for batch in DATA:
            wrapped(batch)
    loop.eval()
    assert torch.equal(direct.convert()(DATA[0]), loop.convert()(DATA[0]))


@pytest.mark.parametrize("wrap", [edgeq.PTCFxModule, lambda model: edgeq.QATFxModule(model, total_epochs=1)])
@pytest.mark.parametrize("action", ["convert", "export"])
def test_without_calibration_nothing_comes_out(wrap, action, tmp_path):
    wrapped = wrap(network("residual")).eval()
    file = tmp_path / "model.onnx"
    with pytest.raises(edgeq.CalibrationError, match=r"no ranges yet.*train\(\) mode"):
        wrapped.convert() if action == "convert" else wrapped.export(DATA[0], file)
    assert not file.exists()


def test_the_prepare_and_convert_functions_observe_in_any_mode():
    prepared = edgeq.prepare_fx(network("residual").eval(), edgeq.QConfigMapping().set_global("WC8_AT8"))
    for batch in DATA:
        prepared(batch)
    expected = calibrated(qconfig_type="WC8_AT8").convert()
    assert torch.equal(edgeq.convert_fx(prepared)(DATA[0]), expected(DATA[0]))
