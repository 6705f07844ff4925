"""The training of a classifier: accuracy, files, resuming, moving average, mixed precision, calibration, bad input."""

import re

import onnx
import pytest
import torch

from recipes import classification
from recipes.classification import main
from recipes.loop import processes
from tests.recipes.pictures import NETWORK, write_digits
from tests.states import changed


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Arguments of the program for all digits, without what a run has of its own."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "nets.py").write_text(NETWORK)
    return arguments(write_digits(folder / "all"), folder / "nets.py")


def arguments(images, network):
    options = {"--data-path": images, "--model": f"{network}:Net", "--size": 16, "--crop": 0.8, "--batch-size": 64}
    options |= {"--workers": 0, "--device": "cpu", "--lr-scheduler": "cosineannealinglr"}
    return [str(word) for pair in options.items() for word in pair] + ["--no-flip"]


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory):
    """A float network that was trained by the same program."""
    folder = tmp_path_factory.mktemp("float")
    assert main([*digits, "--float", "--epochs", "6", "--lr", "0.1", "--output-dir", str(folder)]) == 0
    return folder / "weights.pth"


def states(folder, name="checkpoint.pth"):
    return torch.load(folder / name, weights_only=True)


def rows(folder):
    """The table: the name of each network and its numbers."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: [float(cell) if cell else None for cell in row[1:]] for row in cells[2:]}


def shown(text, title):
    """The top-1 accuracies that were printed with a title."""
    return [float(found) for found in re.findall(rf"^{title}.*top-1 ([\d.]+) %", text, re.MULTILINE)]


@pytest.fixture(scope="module")
def quantized(digits, weights, tmp_path_factory):
    """The folder of a quantized training from those weights."""
    folder = tmp_path_factory.mktemp("quantized")
    more = ["--weights", str(weights), "--epochs", "2", "--lr", "0.01", "--output-dir", str(folder)]
    assert main([*digits, *more]) == 0
    return folder


def test_quantized_training_keeps_the_accuracy_and_the_files_compute_what_was_validated(
    digits, weights, quantized, capsys
):
    assert main([*digits, "--float", "--test-only", "--weights", str(weights)]) == 0
    before, _ = shown(capsys.readouterr().out, "(?:float|test)")
    table = rows(quantized)
    assert before > 95
    assert table["trained quantized"][0] > before - 1.5
    assert table["converted"][4] == table["ONNX Runtime, integer"][4] == 100  # equal outputs
    assert table["ONNX Runtime, qdq"][1] > 98  # agreement with float
    operators = {node.op_type for node in onnx.load(quantized / "integer.onnx").graph.node}
    assert operators >= {"QLinearConv", "MatMulInteger"}


def test_a_checkpoint_holds_the_keys_of_the_float_network(weights, quantized):
    saved, plain = states(quantized), states(weights.parent, "weights.pth")
    assert saved["model"].keys() > plain.keys()
    assert [key for key in plain if saved["model"][key].shape != plain[key].shape] == []
    assert (saved["origin"]["preset"], saved["epoch"]) == ("DEFAULT", 1)


def test_calibration_needs_no_training(digits, weights, tmp_path, capsys):
    more = ["--weights", str(weights), "--output-dir", str(tmp_path), "--preset", "WC8SYMP2_AT8SYMP2"]
    assert main([*digits, "--calibrate", *more]) == 0
    before, after = shown(capsys.readouterr().out, "(?:float|calibrated)")
    assert after > before - 1.5
    table = rows(tmp_path)
    assert [row[4] for name, row in table.items() if name.startswith(("converted", "ONNX"))] == [100] * 3
    assert not (tmp_path / "checkpoint.pth").exists()


# ---- resuming, with everything that has a state


@pytest.fixture(scope="module")
def few(digits, weights, tmp_path_factory):
    """Arguments for a training on fewer digits, with a moving average, warm-up, mixing and mixed precision."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "nets.py").write_text(NETWORK)
    extras = ["--model-ema", "--model-ema-steps", "1", "--model-ema-decay", "0.99", "--lr-warmup-epochs", "1"]
    extras += ["--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--amp", "--clip-grad-norm", "1", "--batch-size", "32"]
    extras += ["--label-smoothing", "0.1", "--norm-weight-decay", "0", "--epochs", "3", "--lr", "0.02"]
    return [*arguments(write_digits(folder / "some", 320), folder / "nets.py"), *extras]


@pytest.fixture(scope="module")
def straight(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert main([*few, "--output-dir", str(folder)]) == 0
    return folder


def stop_before(epoch, monkeypatch):
    """Makes a training end as if it were killed."""
    begin = processes.begin_epoch

    def stop(loader, seed, now):
        if now == epoch:
            raise KeyboardInterrupt
        begin(loader, seed, now)

    monkeypatch.setattr(processes, "begin_epoch", stop)


def flat(value, name=""):
    """All tensors and numbers of nested states, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for index, item in items for key, leaf in flat(item, f"{name}.{index}").items()}
    return {name: torch.as_tensor(value)} if isinstance(value, torch.Tensor | float | int) else {}


def test_a_training_that_was_killed_resumes_bit_for_bit(few, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        stop_before(2, context)
        with pytest.raises(KeyboardInterrupt):
            main([*few, "--output-dir", str(tmp_path)])
    assert states(tmp_path)["epoch"] == 1
    torch.manual_seed(123)  # another process would not begin with the same random numbers either
    assert main([*few, "--output-dir", str(tmp_path), "--resume", str(tmp_path / "checkpoint.pth")]) == 0
    expected, resumed = flat(states(straight)), flat(states(tmp_path))
    assert changed(expected, resumed) == []
    assert {key.split(".")[1] for key in expected} >= {"model", "model_ema", "optimizer", "lr_scheduler", "epoch"}
    assert (straight / "integer.onnx").read_bytes() == (tmp_path / "integer.onnx").read_bytes()


def test_the_moving_average_is_what_is_exported(few, straight, capsys):
    saved, exported = states(straight), states(straight, "weights.pth")
    average = {key.removeprefix("module.module."): value for key, value in saved["model_ema"].items()}
    average.pop("n_averaged")
    assert changed(average, exported) == []
    assert "classifier.weight" in changed(saved["model"], average)
    assert main([*few, "--test-only", "--resume", str(straight / "checkpoint.pth")]) == 0
    measured = shown(capsys.readouterr().out, "test")
    assert measured == [rows(straight)["trained quantized"][0]]


def test_mixed_precision_trains_as_well_and_keeps_float32_parameters(digits, weights, tmp_path, capsys):
    more = ["--weights", str(weights), "--epochs", "1", "--lr", "0.01", "--output-dir", str(tmp_path)]
    assert main([*digits, *more, "--amp"]) == 0
    before, after = shown(capsys.readouterr().out, "(?:float|epoch 1 of 1)")
    assert after > before - 1.5
    saved = states(tmp_path)["model"]
    assert {value.dtype for key, value in saved.items() if key.endswith(("weight", "bias"))} == {torch.float32}
    assert rows(tmp_path)["ONNX Runtime, integer"][4] == 100


# ---- bad input


def test_what_is_missing_or_unknown_is_named(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' needs the folders 'train' and one of test, val"):
        main([*digits, "--data-path", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"torchvision has no network 'resnet19'. Did you mean 'resnet1"):
        main([*digits, "--model", "resnet19", "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"nets.py' defines no 'Other'"):
        main([*digits, "--model", digits[3].replace(":Net", ":Other"), "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"Unknown preset 'WC8_AT9'. Did you mean 'WC8_AT8'"):
        main([*digits, "--preset", "WC8_AT9", "--output-dir", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'nothing.pth'"):
        main([*digits, "--resume", "nothing.pth", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "WC8_AT8"], "from a training with preset 'DEFAULT', this one has 'WC8_AT8'"),
        (["--model", "resnet18"], r"from a training with model '.*nets.py:Net', this one has 'resnet18'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(few, straight, tmp_path, options, message):
    resume = ["--resume", str(straight / "checkpoint.pth"), "--output-dir", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        main([*few, *resume, *options])


def test_a_file_that_is_no_checkpoint_is_refused(few, straight, tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name, message in (
        (tmp_path / "text.pth", "text.pth' is no checkpoint"),
        (straight / "weights.pth", "is no checkpoint of this program. To begin with weights, give --weights"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*few, "--resume", str(name), "--output-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate"], "--calibrate needs a trained network"),
        (["--test-only"], "--test-only needs a trained network"),
        (["--calibrate", "--float", "--weights", "x.pth"], "exclude each other"),
        (["--sync-bn"], "--sync-bn needs a GPU"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--opt", "adam"], "invalid choice: 'adam'"),
        (["--resume", "x.pth", "--start-epoch", "3"], "give one of them"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(digits, capsys, options, message):
    with pytest.raises(SystemExit):
        classification.parse([*digits, *options])
    assert message in capsys.readouterr().err
