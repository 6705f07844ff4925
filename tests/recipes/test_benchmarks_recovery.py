"""The table of what each step of recovery wins back."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import edgeq
from recipes.benchmarks import recovery, subjects
from recipes.benchmarks.__main__ import main
from recipes.benchmarks.accuracy import signal_to_noise
from tests.networks import batches, network

WANTED = {"extremes": [], "calibrated": [], "compensated_rounding": ["compensated_rounding"]}


def trained():
    images, labels = torch.cat(batches(4)), torch.arange(16) % 5
    test = DataLoader(TensorDataset(images, labels), 8)
    return subjects.Trained("it", network("residual"), batches(2), test, batches(8, seed=1))


def test_rows_are_what_a_user_gets_who_recovers_by_hand():
    own = trained()
    (section,) = recovery.measure(own, ["W2A4"], WANTED, "qnnpack", seed=3)
    rows = {row["method"]: row for row in section.rows}
    assert list(rows) == list(WANTED)
    images = torch.cat([images for images, _ in own.test])
    with torch.no_grad():
        reference = own.model(images)
    preset = recovery.SETTINGS["W2A4"].preset
    wrapper = edgeq.PTCFxModule(network("residual"), preset).calibrate(own.calibration)
    plain = edgeq.PTCFxModule(network("residual"), recovery.of_extremes(preset), bias_calibration_factor=0.0)
    plain.calibrate(own.calibration)
    with torch.no_grad():
        assert rows["calibrated"]["SQNR dB"] == pytest.approx(signal_to_noise(reference, wrapper(images)), abs=0.01)
        assert rows["extremes"]["SQNR dB"] == pytest.approx(signal_to_noise(reference, plain(images)), abs=0.01)
        report = wrapper.recover(own.samples, ["compensated_rounding"], seed=3)
        recovered = signal_to_noise(reference, wrapper(images))
    last = rows["compensated_rounding"]
    assert last["SQNR dB"] == pytest.approx(recovered, abs=0.01)
    assert last["undone"] == (None if report.steps[0].kept else "compensated_rounding")
    assert last["seconds"] > 0.0
    assert rows["calibrated"]["seconds"] is None


def test_extremes_are_of_weights_and_activations_and_keep_the_bits():
    preset = edgeq.load_preset(recovery.of_extremes(recovery.SETTINGS["W4A8"].preset))
    assert [spec.observer.name for spec in (preset.weight, preset.activation)] == ["minmax", "minmax"]
    assert (preset.weight.bits, preset.activation.bits, preset.recovery) == (4, 8, ())


@pytest.mark.parametrize("key", list(recovery.SETTINGS))
def test_settings_calibrate_without_steps_of_their_own(key):
    preset = edgeq.load_preset(recovery.SETTINGS[key].preset)
    assert preset.recovery == ()
    assert not preset.learns


def test_every_step_has_a_row_of_its_own():
    rows = recovery.methods()
    assert all(rows[step] == [step] for step in edgeq.recovery_steps())
    assert {step for steps in rows.values() for step in steps} == set(edgeq.recovery_steps())


def test_worth_their_time_are_methods_that_no_other_beats_in_both():
    rows = [
        {"method": "slow", "SQNR dB": 9.0, "seconds": 90.0},
        {"method": "none", "SQNR dB": 5.0, "seconds": None},
        {"method": "bad", "SQNR dB": 4.0, "seconds": 2.0},
        {"method": "quick", "SQNR dB": 8.0, "seconds": 3.0},
        {"method": "worse", "SQNR dB": 9.0, "seconds": 91.0},
    ]
    assert recovery.advice(rows) == "none (5.0 dB, 0 s), quick (8.0 dB, 3 s), slow (9.0 dB, 90 s)"


def test_the_command_writes_a_table_for_each_setting(files, tmp_path, capsys):
    network_file, weights, images = map(str, files)
    threads = torch.get_num_threads()
    try:
        assert main(["recovery", "--network", network_file, "--weights", weights, "--images", images, "--settings", "8",
                     "W4A8", "--methods", "calibrated", "equalization", "--output", str(tmp_path)]) == 0  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    sections = json.loads((tmp_path / "benchmarks.json").read_text())["sections"]
    assert [title.partition(": ")[2] for title in sections] == ["8 bits", "4-bit weights, 8-bit activations"]
    assert all([row["method"] for row in rows] == ["calibrated", "equalization"] for rows in sections.values())
    assert "change >= -0.3" in capsys.readouterr().out
