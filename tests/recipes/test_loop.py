"""The parts that the training programs share: learning rates, groups of parameters, averages, checkpoints."""

import argparse
import socket

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, PolynomialLR
from torch.utils.data import DataLoader, TensorDataset

import edgeq
from recipes import classification
from recipes.loop import checkpoints, processes
from recipes.loop.optimization import OPTIMIZERS, Precision, moving_average, parameter_groups, warmed_up
from recipes.torchvision_import import import_torchvision
from tests.networks import batches, network
from tests.recipes.pictures import NETWORK, write_digits
from tests.states import changed, snapshot


def options(**given):
    defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "norm_weight_decay": None, "epochs": 5}
    defaults |= {"lr_warmup_epochs": 0, "lr_warmup_decay": 0.01}
    return argparse.Namespace(**defaults | given)


def rates(main, steps, **given):
    """The learning rate in every step."""
    given = options(**given)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], given.lr)
    schedule = warmed_up(optimizer, main, steps, given)
    found = []
    for _ in range(given.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_rises_in_a_line_and_then_follows_the_cosine_of_the_epochs_that_are_left():
    found = rates(CosineAnnealingLR, 1, lr_warmup_epochs=2, lr_warmup_decay=0.5)
    assert found == pytest.approx([0.05, 0.075, 0.1, 0.075, 0.025])


def test_the_polynomial_ends_at_zero_after_the_last_batch():
    found = rates(lambda optimizer, steps: PolynomialLR(optimizer, steps, 0.9), 4)
    assert found == pytest.approx([0.1 * (1 - step / 20) ** 0.9 for step in range(20)])


# ---- groups of parameters


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"])
def test_norms_of_a_wrapped_network_are_known_by_their_class(name):
    model = import_torchvision().models.get_model(name, weights=None, num_classes=4)
    plain = parameter_groups(model, options(norm_weight_decay=0.0))
    wrapped = parameter_groups(edgeq.QATFxModule(model, total_epochs=2), options(norm_weight_decay=0.0))
    assert [group["weight_decay"] for group in plain] == [1e-4, 0.0]
    for mine, theirs in zip(wrapped, plain, strict=True):
        assert mine["weight_decay"] == theirs["weight_decay"]
        assert {id(one) for one in mine["params"]} == {id(one) for one in theirs["params"]}
        assert len(mine["params"]) == len(theirs["params"])


def test_without_a_decay_of_their_own_norms_are_with_the_rest():
    (group,) = parameter_groups(network("residual"), options(), rate=0.5)
    assert len(group["params"]) == len(list(network("residual").parameters()))
    assert (group["lr"], group["weight_decay"]) == (0.5, 1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_down_the_gradient(name):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[name]([{"params": [parameter], "weight_decay": 0.0}], options(lr=0.01))
    for _ in range(5):
        Precision(torch.device("cpu"), False).step(parameter.square().sum(), optimizer, [parameter], 1.0)
    assert bool((parameter < 1).all() & (parameter > 0.5).all())


# ---- moving average


def test_the_weight_of_a_new_value_grows_with_the_images_between_two_updates():
    given = options(model_ema=True, model_ema_steps=4, batch_size=8, model_ema_decay=0.999)
    average = moving_average(nn.Linear(1, 1, bias=False), given, processes=2)
    weight = 0.001 * 2 * 8 * 4 / given.epochs
    for value in (1.0, 2.0):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(1 + weight)
    assert moving_average(model, options(model_ema=False), 1) is None


# ---- what is random, and batch norms over processes


def test_an_epoch_that_is_begun_anew_draws_the_same():
    loader = DataLoader(TensorDataset(torch.arange(32)), 32, shuffle=True)
    orders = []
    for epoch in (0, 1, 1):
        processes.begin_epoch(loader, 7, epoch)
        orders.append(next(iter(loader))[0].tolist())
    assert orders[0] != orders[1] == orders[2]


def test_synchronized_batch_norms_are_trained_and_folded_like_others():
    results = []
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, lambda model: model):
        wrapped = edgeq.QATFxModule(convert(network("residual").train()), total_epochs=2)
        for batch in batches(2):
            wrapped(batch).square().mean().backward()
        with torch.no_grad():
            results.append((snapshot(wrapped.eval()), wrapped(batches(1)[0]), wrapped.convert()(batches(1)[0])))
    assert changed(results[0][0], results[1][0]) == []
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][1], results[0][2])


# ---- checkpoints


def test_a_checkpoint_is_whole_or_is_the_one_before(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    checkpoints.save(tmp_path, {"model": model, "model_ema": None}, {"model": "a"}, 0)
    before = snapshot(model)

    def fail(state, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    nn.init.zeros_(model.weight)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, {"model": model}, {"model": "a"}, 1)
    assert checkpoints.load(tmp_path / "checkpoint.pth", {"model": model}, {"model": "a"}) == 1
    assert changed(before, model) == []


def test_a_part_that_a_checkpoint_lacks_is_named(tmp_path):
    model = nn.Linear(2, 2)
    checkpoints.save(tmp_path, {"model": model}, {}, 0)
    with pytest.raises(ValueError, match="holds no model_ema: its training was without"):
        checkpoints.load(tmp_path / "checkpoint.pth", {"model": model, "model_ema": model}, {})


# ---- two processes

WORLD = 2


def work(rank, words, folder, port):
    """One process: the whole program, whose network is looked at on the way."""
    torch.set_num_threads(1)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": WORLD,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    train = classification.trained

    def watched(images, given, device):
        model = train(images, given, device)
        found = classification.accuracy(model, images, device)
        torch.save({"state": model.state_dict(), "images": found.images, "top_1": found.top_1}, folder / f"{rank}.pth")
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "trained", watched)
        for key, value in environment.items():
            patch.setenv(key, str(value))
        if classification.main(words) != 0:
            raise RuntimeError("The files do not compute what was validated.")


def test_two_processes_end_with_equal_networks_and_measure_every_image_once(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORK)
    write_digits(tmp_path / "digits", 203)
    words = ["--data-path", tmp_path / "digits", "--model", f"{tmp_path / 'nets.py'}:Net", "--size", 16, "--epochs", 2]
    words += ["--batch-size", 16, "--workers", 0, "--device", "cpu", "--output-dir", tmp_path, "--model-ema"]
    words += ["--model-ema-steps", 1, "--model-ema-decay", 0.99, "--seed", 3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, ([str(word) for word in words], tmp_path, port), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(WORLD))
    assert changed(first["state"], second["state"]) == []
    assert (first["images"], first["top_1"]) == (second["images"], second["top_1"])
    assert first["images"] == len(list((tmp_path / "digits" / "val").rglob("*.png"))) == 50
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert changed({f"module.{key}": value for key, value in first["state"].items()}, saved["model_ema"]) == [
        "n_averaged"
    ]
    assert int(saved["model"]["quantization.schedule.step"]) == 4  # of 153 images, 76 a process, 16 in a batch
    assert (tmp_path / "integer.onnx").stat().st_size > 10_000  # written by the first, which then is alone
