"""Averages of a wrapper's parameters and buffers, as torchvision's training keeps one: numbers that are legal."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import edgeq
from tests.networks import batches, network
from tests.states import changed, snapshot, train_step

DATA = batches(6)


def by_hand(decay):
    """The form in which torchvision's references write it."""
    return {"avg_fn": lambda average, value, _: decay * average + (1 - decay) * value}


def by_torch(decay):
    return {"multi_avg_fn": get_ema_multi_avg_fn(decay)}


FORMS = {"by hand": by_hand(0.95), "by torch": by_torch(0.95), "equal": {}}


def averaged(moments, preset="WC8P2_AT8P2", name="residual", epochs=4, **options):
    """A network after its training, and its average: over every step, over every epoch before or after its
    evaluation, or only over the epochs in which nothing adapts any more.
    """
    torch.manual_seed(0)
    model = edgeq.QATFxModule(network(name).train(), preset, total_epochs=epochs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    average = AveragedModel(model, use_buffers=True, **options)
    for epoch in range(epochs):
        model.train()
        for batch in DATA:
            train_step(model, optimizer, batch)
            if moments == "steps" or (moments == "frozen" and epoch == epochs - 1):
                average.update_parameters(model)
        if moments == "epochs":
            average.update_parameters(model)
        model.eval()
        if moments == "evaluations":
            average.update_parameters(model)
        average.eval()
    return model, average.module


MOMENTS = ["steps", "frozen", "epochs", "evaluations"]


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["residual", "attention"])
def test_scales_and_zero_points_of_an_average_are_those_of_its_ranges(name, form, moments):
    _, average = averaged(moments, name=name, **FORMS[form])
    for tensor in average.module.quantizers():
        derived = tensor._parameters_of(*(tensor.fixed or tensor.observer.range()))
        assert torch.equal(tensor.scale, derived.scale)
        assert abs(int(tensor.zero_point) - int(derived.zero_point)) <= 1  # made even behind sums and products
        assert (int(tensor.quant_min), int(tensor.quant_max)) == (int(derived.quant_min), int(derived.quant_max))
    scales = [layer.weight_quantizer.scale for layer in average.module.quantized_layers()]
    assert bool((torch.frexp(torch.cat(scales)).mantissa == 0.5).all())  # powers of two


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("preset", ["DEFAULT", "WC8P2_AT8P2"])
def test_an_average_is_near_its_own_float_network_and_converts(preset, moments):
    model, average = averaged(moments, preset, **by_hand(0.95))
    with torch.no_grad():
        output, real = average(DATA[0]), average.module.run_float(DATA[0])
        assert torch.equal(output, average.convert()(DATA[0]))
    assert not torch.equal(average.module.fc.weight, model.module.fc.weight)
    assert float((output - real).square().mean() / real.square().mean()) < 0.01


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_second_evaluation_changes_nothing_in_an_average(moments):
    _, average = averaged(moments, **by_hand(0.95))
    before = snapshot(average)
    average.eval()
    average.convert()
    assert changed(before, average) == []


def test_a_state_that_was_copied_is_no_average():
    model, average = averaged("steps", epochs=2, **by_torch(0.0))
    assert changed(snapshot(model), average) == []


def test_an_average_from_before_the_first_batch_of_calibration_takes_over_what_is_found():
    wrapped = edgeq.PTCFxModule(network("residual"))
    average = AveragedModel(wrapped, use_buffers=True, avg_fn=lambda average, value, _: value)
    wrapped.calibrate(DATA)
    for _ in range(2):  # the first time everything is copied, the second averaged
        average.update_parameters(wrapped)
        assert changed(snapshot(wrapped), average.module) == []
