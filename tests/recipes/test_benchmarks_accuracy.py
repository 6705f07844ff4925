"""The protocol of accuracy: figures, images in their order, networks from files."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import edgeq
from recipes.benchmarks import accuracy, subjects
from tests.networks import batches, network


def test_the_signal_to_noise_ratio_is_that_of_the_formula():
    reference = torch.tensor([[3.0, -4.0]])
    assert accuracy.signal_to_noise(reference, reference * 0.9) == pytest.approx(20.0, abs=1e-4)
    assert accuracy.signal_to_noise(reference, reference) == math.inf


def trained(name="residual"):
    images, labels = torch.cat(batches(4)), torch.arange(16) % 5
    return subjects.Trained("it", network(name), batches(2), DataLoader(TensorDataset(images, labels), 8))


def test_accuracy_compares_each_preset_with_float_on_the_same_images():
    own = trained()
    section = accuracy.measure(own, ["WC8_AT8", "WC4_AT8"], "qnnpack")
    wrapper = edgeq.PTCFxModule(network("residual"), "WC8_AT8").calibrate(own.calibration)
    images, labels = (torch.cat(parts) for parts in zip(*own.test, strict=True))
    with torch.no_grad():
        expected, reference = wrapper(images), own.model(images)
    by_preset = {row["preset"]: row for row in section.rows}
    eight = by_preset["WC8_AT8"]
    assert list(by_preset) == ["float", "WC8_AT8", "WC4_AT8"]
    assert by_preset["float"]["top-1 %"] == 100 * (reference.argmax(1) == labels).float().mean().item()
    assert eight["SQNR dB"] == pytest.approx(accuracy.signal_to_noise(reference, expected), abs=0.01)
    assert eight["change"] == pytest.approx(eight["top-1 %"] - by_preset["float"]["top-1 %"])
    assert eight["SQNR dB"] > by_preset["WC4_AT8"]["SQNR dB"]


def test_the_column_of_the_bar_that_is_missed_is_named():
    reference = torch.eye(4)
    row = accuracy.row("WC8_AT8", reference, reference + 0.1, torch.arange(4))
    assert (row["verdict"], row["bar"]) == ("missed: SQNR", "agreement >= 99 %, SQNR >= 31 dB")
    assert accuracy.row("WC8_AT8", reference, reference + 1e-3, torch.arange(4))["verdict"] == "met"


def test_a_preset_that_the_backend_cannot_run_is_named_with_the_reason():
    section = accuracy.measure(trained(), ["WC8_AT8", "WT8SYMP2_AT8SYMP2"], "tidl-tda4vm")
    assert [row["preset"] for row in section.rows] == ["float", "WT8SYMP2_AT8SYMP2"]
    assert any(note.startswith("WC8_AT8 is left out: ") and "power_of_two" in note for note in section.notes)


def test_images_come_in_the_order_of_their_numbers_and_normalized(files):
    own = subjects.from_files(*files, mean=(0.0, 0.0, 0.1), deviation=(1.0, 1.0, 0.5), test_images=3)
    (calibration,) = own.calibration
    ((test, labels),) = own.test
    assert (calibration[:, 0, 0, 0] * 255).tolist() == pytest.approx([2, 9, 10, 100])
    assert (test[:, 0, 0, 0] * 255).tolist() == pytest.approx([2, 9, 10])
    assert labels.tolist() == [1, 1, 0]
    assert calibration[0, 2, 0, 0].item() == pytest.approx((51 / 255 - 0.1) / 0.5)
    assert torch.equal(own.model[0].weight, torch.load(files[1])["0.weight"])


def test_images_of_another_size_are_cropped_on_demand(files):
    assert subjects.from_files(*files, crop=5).calibration[0].shape == (4, 3, 5, 5)


@pytest.mark.parametrize("change", [":Other", ""])
def test_a_network_that_is_not_there_is_refused_by_name(files, change):
    path = files[0].partition(":")[0]
    with pytest.raises(ValueError, match=r"nets\.py"):
        subjects.load_class(path + change)


def test_calibration_is_on_the_first_images_of_the_training_set():
    dataset = TensorDataset(torch.arange(300.0), torch.zeros(300))
    found = subjects.first_images(dataset)
    assert [len(batch) for batch in found] == [64] * 4
    assert torch.equal(torch.cat(found), torch.arange(256.0))
