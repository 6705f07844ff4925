"""Input that makes no sense is refused with an error that names the thing, its value and the way out."""

import traceback

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import CalibrationError, SpecError
from tests.networks import batches, network
from tests.states import changed, snapshot

DATA = batches(2)


def spoiled(value, index=1):
    data = batches(2)
    data[index][0, 0, 0, 0] = value
    return data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qconfig_type": "WC8_AT9"}, "Unknown preset 'WC8_AT9'. Did you mean 'WC8_AT8'"),
        ({"qconfig_type": {"weigth": {"bits": 4}}}, "'weigth'.*Did you mean 'weight'"),
        ({"qconfig_type": 8}, "a name, a path, a dict or a QConfig, got 8"),
        ({"qconfig_type": "nowhere.toml"}, "'nowhere.toml' cannot be read"),
        ({"backend": "qnpack"}, "Unknown backend 'qnpack'. Did you mean 'qnnpack'"),
        ({"bias_calibration_factor": 1.5}, "bias_calibration_factor must be a number in 0..1, got 1.5"),
        ({"bias_calibration_factor": -0.1}, "bias_calibration_factor must be a number in 0..1, got -0.1"),
        ({"bias_calibration_factor": float("nan")}, "bias_calibration_factor must be a number in 0..1, got nan"),
        ({"bias_calibration_factor": True}, "bias_calibration_factor must be a number in 0..1, got True"),
        ({"bias_calibration_factor": "0.5"}, "bias_calibration_factor must be a number in 0..1, got '0.5'"),
        ({"num_observer_update_epochs": -1}, "num_observer_update_epochs must be an integer of at least 0, got -1"),
        ({"num_batch_norm_update_epochs": 1.0}, "num_batch_norm_update_epochs must be an integer .*, got 1.0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be an integer of at least 1, got 0"),
        ({"example_inputs": torch.rand(1, 5, 16, 16)}, r"not run on example_inputs, torch.float32 \(1, 5, 16, 16\)"),
    ],
)
def test_an_argument_is_refused_by_name_and_value(options, message):
    with pytest.raises(SpecError, match=message):
        edgeq.PTCFxModule(network("residual"), **options)


@pytest.mark.parametrize("total", [-1, 0, True, 2.5, "10"])
def test_total_epochs_must_be_a_positive_integer(total):
    with pytest.raises(SpecError, match=f"total_epochs must be an integer of at least 1, got {total!r}"):
        edgeq.QATFxModule(network("residual"), total_epochs=total)


def test_total_epochs_must_be_said():
    with pytest.raises(SpecError, match=r"total_epochs is missing.*QATFxModule\(model, total_epochs=25\)"):
        edgeq.QATFxModule(network("residual"))


def test_a_refused_argument_leaves_the_model_alone():
    model = network("residual")
    before, kinds = snapshot(model), [type(module) for module in model.modules()]
    with pytest.raises(SpecError):
        edgeq.PTCFxModule(model, "WC8_AT9")
    assert changed(before, model) == []
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("model", [None, [1], nn.Linear, lambda x: x])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(SpecError, match=r"model must be a torch.nn.Module, got \w+"):
        edgeq.PTCFxModule(model)


@pytest.mark.parametrize("part", [lambda w: w, lambda w: w.module, lambda w: w.convert(), lambda w: w.convert().module])
def test_what_is_wrapped_already_is_refused(part):
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate(DATA)
    with pytest.raises(SpecError, match=r"already quantized.*wrap the float model"):
        edgeq.QATFxModule(part(wrapped), total_epochs=2)


def test_a_model_with_nothing_to_quantize_is_refused():
    with pytest.raises(SpecError, match="ReLU has no layer that can be quantized"):
        edgeq.PTCFxModule(nn.ReLU())


def test_a_model_whose_attribute_edgeq_needs_is_refused():
    model = network("residual")
    model.quantization = nn.Identity()
    with pytest.raises(SpecError, match=r"attribute 'quantization'.*rename"):
        edgeq.PTCFxModule(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("index", [0, 1])
def test_calibration_data_that_is_not_finite_is_refused_by_the_tensors_name(value, index):
    wrapped = edgeq.PTCFxModule(network("residual"))
    with pytest.raises(CalibrationError, match="tensor 'x' held NaN or infinity"):
        wrapped.calibrate(spoiled(value, index))
    with pytest.raises(CalibrationError, match="tensor 'x' held NaN or infinity"):
        wrapped.eval()  # it stays refused
    with pytest.raises(CalibrationError, match="tensor 'x' held NaN or infinity"):
        wrapped.convert()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_data_that_is_not_finite_is_refused_at_the_end_of_the_epoch(value):
    wrapped = edgeq.QATFxModule(network("residual").train(), total_epochs=2)
    for batch in spoiled(value):
        wrapped(batch)
    with pytest.raises(CalibrationError, match="tensor 'x' held NaN or infinity"):
        wrapped.eval()


def test_the_first_tensor_that_is_not_finite_is_named():
    model = network("residual")
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(CalibrationError, match=r"tensor '(conv2|add)' held NaN or infinity"):
        edgeq.PTCFxModule(model, bias_calibration_factor=0).calibrate(DATA)


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(CalibrationError, match="no batch in epoch 1 of 1"):
        edgeq.PTCFxModule(network("residual")).calibrate(loader)


def test_an_iterator_for_several_epochs_is_refused_with_the_way_out():
    wrapped = edgeq.PTCFxModule(network("residual"), num_observer_update_epochs=2)
    with pytest.raises(CalibrationError, match=r"no batch in epoch 2 of 2.*pass a list or a DataLoader"):
        wrapped.calibrate(iter(DATA))


@pytest.mark.parametrize("epochs", [0, -1, True, 1.5])
def test_a_number_of_epochs_that_makes_no_sense_is_refused(epochs):
    with pytest.raises(SpecError, match=f"epochs must be an integer of at least 1, got {epochs!r}"):
        edgeq.PTCFxModule(network("residual")).calibrate(DATA, epochs)


def test_empty_batches_alone_are_no_calibration():
    wrapped = edgeq.PTCFxModule(network("residual")).calibrate([DATA[0][:0]])
    with pytest.raises(CalibrationError, match="no ranges yet"):
        wrapped.convert()


def test_an_empty_batch_among_others_changes_no_range():
    plain, mixed = (
        edgeq.PTCFxModule(network("residual"), bias_calibration_factor=0).calibrate(data)
        for data in (DATA, [DATA[0][:0], *DATA])
    )
    assert changed(snapshot(plain), mixed) == [
        "module.quantization.schedule.seal",
        "module.quantization.schedule.settled",
        "module.quantization.schedule.step",
    ]
    assert torch.equal(plain(DATA[0]), mixed(DATA[0]))


def test_batches_of_a_wrong_shape_fail_with_the_layer_in_the_traceback():
    wrapped = edgeq.PTCFxModule(network("residual"))
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 5") as error:
        wrapped.calibrate([torch.rand(1, 5, 16, 16)])
    assert "self.conv1(" in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("wrap", [edgeq.PTCFxModule, lambda model: edgeq.QATFxModule(model, total_epochs=1)])
def test_eval_before_any_calibration_warns(wrap, caplog):
    wrap(network("residual")).eval()
    assert caplog.messages == ["eval() before any calibration or training step: the network runs in float."]


def test_freeze_takes_booleans_only():
    with pytest.raises(SpecError, match="True, False or None, got 'all'"):
        edgeq.PTCFxModule(network("residual")).freeze("all")
