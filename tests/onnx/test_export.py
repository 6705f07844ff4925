"""A file is written whole or not at all, and whatever cannot be written says why and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

import edgeq
from edgeq.errors import CalibrationError, ExportError
from edgeq.onnx import export as exporting
from tests.networks import network
from tests.onnx.ort import calibrated, converted, exported, image


def export(path, **options):
    return converted("residual").export(options.pop("inputs", image()), path, **{"verify": False, **options})


def test_the_result_says_what_was_written(tmp_path):
    path = tmp_path / "model.onnx"
    result = converted("residual").export(image(), path)
    assert (result.path, result.format, result.opset, result.ir_version) == (path, "qdq", 17, 8)
    assert result.bytes == path.stat().st_size
    assert sum(result.nodes.values()) == len(onnx.load(path).graph.node) == 31
    assert (result.nodes["QuantizeLinear"], result.nodes["Conv"]) == (8, 2)
    assert [parity.runtime for parity in result.parity] == ["unfused", "fused"]
    assert result.passed
    lines = str(result).splitlines()
    assert lines[0] == f"{path}: qdq, opset 17, {result.bytes / 1024:.0f} KiB, 31 nodes"
    assert lines[1] == "unfused: passed, 0 of 29780 integers differ over 4 images, top-1 agrees on 100.00 %"


def test_the_default_name_is_model_onnx_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    converted("residual").export(image(), verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    export(path)
    assert path.read_bytes() == exported("residual").SerializeToString()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["check_model", "compare", "write_atomically", "os.fsync", "os.replace"])
def test_an_exception_anywhere_leaves_the_old_file_whole_and_no_other(place, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError("no space left")

    owner, name = {"check_model": (onnx.checker, place)}.get(place) or (exporting, place)
    if place.startswith("os."):
        owner, name = os, place.removeprefix("os.")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="no space left"):
        export(path, verify=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, sys
from edgeq.onnx.export import write_atomically
from pathlib import Path

def die(*args):
    os._exit(9)

setattr(os, sys.argv[2], die)
write_atomically(b"new" * 100_000, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file_whole(moment, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path, moment], cwd=Path(edgeq.__file__).parents[1])
    assert killed.returncode == 9
    assert path.read_bytes() == b"old"
    left = [other.name for other in tmp_path.iterdir() if other != path]
    assert all(name.startswith(".model.onnx.") and name.endswith(".part") for name in left)
    export(path)  # what the killed process left is in nobody's way
    assert path.read_bytes() == exported("residual").SerializeToString()


ANOTHER_PROCESS = """
import sys
from tests.onnx.ort import exported
open(sys.argv[1], "wb").write(exported("residual", opset_version=int(sys.argv[2])).SerializeToString())
"""


@pytest.mark.parametrize("opset", [17, pytest.param(18, marks=pytest.mark.sweep)])
def test_another_process_writes_the_same_bytes(opset, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    folder = Path(edgeq.__file__).parents[1]
    path = tmp_path / "model.onnx"
    command = [sys.executable, "-c", ANOTHER_PROCESS, path, str(opset)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    assert path.read_bytes() == exported("residual", opset_version=opset).SerializeToString()


BAD = [
    ({"inputs": torch.rand(1, 4, 16, 16)}, r"does not run on the example inputs \(torch.float32 \(1, 4, 16, 16\)\)"),
    ({"inputs": torch.rand(16)}, r"does not run on the example inputs \(torch.float32 \(16,\)\)"),
    ({"inputs": (image(), image())}, r"takes 1 inputs \(x\), got 2"),
    ({"inputs": ()}, r"hold no tensor: \(\)"),
    ({"inputs": "image.png"}, r"hold no tensor: 'image.png'"),
    ({"inputs": image()[:0]}, r"are empty \(torch.float32 \(0, 3, 16, 16\)\)"),
    ({"inputs": image().double()}, r"torch.float64 \(4, 3, 16, 16\); floating ones must be float32"),
    ({"format": "QDQ"}, r"format is 'QDQ'. Did you mean 'qdq'"),
    ({"format": "tflite"}, r"format is 'tflite'. Known: integer, qdq"),
    ({"input_names": ["a", "b"]}, r"input_names has 2 names, the model has 1 such tensors: \['x'\]"),
    ({"output_names": []}, r"output_names has 0 names, the model has 1 such tensors: \['output'\]"),
    ({"input_names": "image"}, r"input_names is 'image'; give a list"),
    ({"input_names": ["a"], "output_names": ["a"]}, r"called \['a', 'a'\]: \['a'\] must each be one tensor's own"),
    ({"output_names": [""]}, r"\[''\] must each be one tensor's own, and not empty"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_an_error_that_names_it_and_leaves_no_file(options, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_an_error_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "capture", None)  # work would fail in another way
    with pytest.raises(ExportError, match=r"is a folder; name a file in it"):
        export(tmp_path)
    with pytest.raises(ExportError, match=r"The folder '.*nowhere' does not exist; create it first"):
        export(tmp_path / "nowhere" / "model.onnx")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ExportError, match=r"The folder '.*' is not writable"):
        export(tmp_path / "model.onnx")


def test_a_network_without_ranges_is_an_error_that_says_how_to_get_them(tmp_path):
    with pytest.raises(CalibrationError, match=r"no ranges yet: run at least one batch in train\(\) mode"):
        edgeq.PTCFxModule(network("residual")).export(image(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_compute_what_was_validated_is_written_but_said_to_have_failed(
    tmp_path, monkeypatch, caplog
):
    honest = exporting.finish

    def dishonest(captured):
        model = honest(captured)
        weight = model.graph.initializers["conv2.weight"]
        weight.const_value = exporting.ir.tensor(weight.const_value.numpy() // 2, name="conv2.weight")
        return model

    monkeypatch.setattr(exporting, "finish", dishonest)
    result = converted("residual").export(image(), tmp_path / "model.onnx")
    assert not result.passed
    assert [parity.first_divergence.name for parity in result.parity] == ["conv2", "conv2"]
    assert "does not compute what was validated" in caplog.text


def test_exporting_changes_nothing_in_the_network(tmp_path):
    wrapped = calibrated("residual")
    wrapped.eval()
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    with torch.no_grad():
        output = wrapped(image())
        wrapped.export(image(), tmp_path / "model.onnx")
        assert torch.equal(wrapped(image()), output)
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
    assert not wrapped.training


def test_a_network_in_training_exports_as_it_would_in_evaluation_and_goes_on_training(tmp_path):
    wrapped = edgeq.QATFxModule(network("residual"), total_epochs=10)
    wrapped.train()
    wrapped(image())
    wrapped.export(image(), tmp_path / "training.onnx", verify=False)
    assert wrapped.training
    assert wrapped.module.bn1.training
    wrapped.eval()
    wrapped.export(image(), tmp_path / "evaluation.onnx", verify=False)
    assert (tmp_path / "training.onnx").read_bytes() == (tmp_path / "evaluation.onnx").read_bytes()
