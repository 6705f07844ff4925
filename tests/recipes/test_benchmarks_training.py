"""The table of ways to train quantized."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeq
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from recipes.benchmarks import subjects, training
from recipes.benchmarks.__main__ import main
from recipes.training import accuracy
from tests.networks import batches, network


def trained():
    images, labels = torch.cat(batches(8)), torch.arange(32) % 5
    loader = DataLoader(TensorDataset(images, labels), 8, shuffle=True)
    return subjects.Trained("it", network("residual").eval(), batches(2), loader, batches(8, seed=1), loader)


def test_float_and_quantized_networks_are_trained_alike_and_compared():
    own = trained()
    wanted = {name: training.ways()[name] for name in ("float", "WC4_AT4", "W4A4_LSQ")}
    section = training.measure(own, wanted, "qnnpack", epochs=2, rate=0.05)
    rows = {row["way"]: row for row in section.rows}
    assert list(rows) == list(wanted)
    model = copy.deepcopy(own.model).train()
    loss, _ = training.fine_tuned(model, own.training, 2, 0.05, 0)
    assert rows["float"]["loss"] == pytest.approx(loss, rel=1e-4)
    images, labels = own.test.dataset.tensors
    with torch.no_grad():
        assert rows["float"]["top-1 %"] == pytest.approx(accuracy(model(images), labels))
    for row in rows.values():
        assert row["beside float"] == row["top-1 %"] - rows["float"]["top-1 %"]
        assert row["seconds an epoch"] > 0.0
    with torch.no_grad():
        before = nn.functional.cross_entropy(own.model(images), labels).item()
    assert rows["W4A4_LSQ"]["loss"] < before


def test_what_quantizers_learn_is_trained_too():
    own = trained()
    model = training.prepared(own, training.ways()["W4A4_LSQ"], "qnnpack", 2, 0)
    model(own.calibration[0])
    before = [parameter.detach().clone() for parameter in model.quantizer_parameters()]
    training.fine_tuned(model, own.training, 1, 0.05, 0)
    pairs = zip(before, model.quantizer_parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)


def test_a_training_after_a_recovery_begins_with_the_codes_that_it_found():
    own = trained()
    way = training.Way("W4A4_LSQPLUS", steps=["compensated_rounding"])
    model = training.prepared(own, way, "qnnpack", 3, 0)
    assert any(bool(layer.weight_quantizer.offset.any()) for layer in model.module.quantized_layers())
    assert (
        model.module.schedule.norm_epochs
        == edgeq.QATFxModule(network("residual"), total_epochs=4).module.schedule.norm_epochs
    )
    model.train()
    model(own.calibration[0])
    assert int(model.module.schedule.epoch) == 1


def test_every_strategy_and_every_low_preset_is_among_the_ways():
    found = training.ways()
    assert found["float"] is None
    assert {f"batch_norm {name}" for name in NORM_STRATEGIES} <= set(found)
    assert {name for name in edgeq.preset_names() if name.startswith("W4")} <= set(found)


def test_the_command_writes_the_ways_that_are_asked_for(files, tmp_path, capsys):
    network_file, weights, images = map(str, files)
    threads = torch.get_num_threads()
    try:
        assert main(["training", "--network", network_file, "--weights", weights, "--images", images, "--ways", "float",
                     "dampening 1e-3", "--epochs", "2", "--output", str(tmp_path)]) == 0  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    ((title, rows),) = json.loads((tmp_path / "benchmarks.json").read_text())["sections"].items()
    assert title.endswith(": trained")
    assert [row["way"] for row in rows] == ["float", "dampening 1e-3"]
    assert "2 epochs, rate 0.01, seed 0" in capsys.readouterr().out
