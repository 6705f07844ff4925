"""The wheel holds the code and the data, and works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeq
from tests.test_backends import BACKENDS
from tests.test_presets import NAMES

ROOT = Path(__file__).parents[1]
USE = """
import json, sys
import torch
import edgeq
presets = {name: edgeq.load_preset(name).weight.bits for name in edgeq.preset_names()}
backends = {name: edgeq.load_backend(name).onnx.ir_version for name in edgeq.backend_names()}
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
images = torch.rand(2, 3, 8, 8)
result = edgeq.PTCFxModule(model).calibrate([images]).export(images, sys.argv[1])
print(json.dumps([edgeq.__file__, edgeq.__version__, presets, backends, result.passed]))
"""


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves a folder behind, and what lies in it from before would get into the wheel."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("edgeq", "qconfigs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(source / "dist"), str(source))
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_every_module_and_every_preset_and_backend_is_in_the_wheel_and_nothing_else(wheel):
    code = {f"edgeq/{path.relative_to(ROOT / 'edgeq').as_posix()}" for path in (ROOT / "edgeq").rglob("*.py")}
    data = {
        f"edgeq/qconfigs/{path.relative_to(ROOT / 'qconfigs').as_posix()}" for path in (ROOT / "qconfigs").rglob("*.*")
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == code | data | {"edgeq/py.typed"}
    assert len(data) == len(NAMES) + len(BACKENDS)


def test_the_metadata_name_the_version_and_what_is_needed(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    assert f"Version: {edgeq.__version__}" in lines
    needed = [
        line.removeprefix("Requires-Dist: ")
        for line in lines
        if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert sorted(name.split(">=")[0] for name in needed) == [
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "torch",
        "tqdm",
    ]


def test_an_installed_edgeq_finds_its_presets_and_does_its_job(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    arguments = [sys.executable, "-c", USE, str(tmp_path / "model.onnx")]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    output = subprocess.run(arguments, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    file, version, presets, backends, passed = json.loads(output)
    assert Path(file) == site / "edgeq" / "__init__.py"
    assert version == edgeq.__version__
    assert presets == {name: int(name.removeprefix("W").lstrip("CT")[0]) if name[0] == "W" else 8 for name in NAMES}
    assert backends == {name: 10 if name == "onnxruntime" else 8 for name in BACKENDS}
    assert passed is True
