"""The main job in one go, on small networks: wrap, calibrate, convert, export, verify."""

import pytest
import torch

import edgeq
from tests.networks import NETWORKS, batches, network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_main_job(name, tmp_path):
    model = network(name)
    wrapped = edgeq.PTCFxModule(model).calibrate(batches())
    image = batches(1, seed=9)[0]
    simulated = wrapped(image)
    converted = wrapped.convert()
    assert torch.equal(simulated, converted(image))
    noise = (simulated - model(image)).square().sum() / model(image).square().sum()
    assert noise < 0.02  # 17 dB: an untrained network of small width, eight bits
    result = wrapped.export(image, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 1000
    assert result.passed, str(result)


def test_training_goes_on_with_the_users_own_parameters():
    model = network("residual").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapped = edgeq.QATFxModule(model, total_epochs=100)
    data, labels = torch.cat(batches()), torch.arange(8) % 5
    torch.manual_seed(3)
    losses = []
    for _ in range(40):
        wrapped.train()
        loss = torch.nn.functional.cross_entropy(wrapped(data), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.7 * losses[0]
