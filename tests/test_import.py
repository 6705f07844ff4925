"""What `import edgeq` costs and touches: nothing that its user would notice."""

import json
import os
import re
import subprocess
import sys

import pytest

import edgeq

PROBE = """
import json, sys, time
start = time.process_time()
import torch
torch_seconds = time.process_time() - start
import logging, os, random, signal, warnings
import numpy

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic],
        "fast paths": [torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
                       torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()],
        "gradients": torch.is_grad_enabled(),
        "warnings": [str(rule) for rule in warnings.filters],
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "environment": dict(os.environ),
        "random": [hash(random.getstate()), str(numpy.random.get_state()[1]), torch.get_rng_state().sum().item()],
        "excepthook": str(sys.excepthook),
        "path": sys.path,
        "folder": os.getcwd(),
        "flush": torch.set_flush_denormal(False),
    }

before, loaded = state(), set(sys.modules)
start = time.process_time()
import edgeq
seconds = time.process_time() - start
after, new = state(), sorted({name.split(".")[0] for name in set(sys.modules) - loaded})
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
print(json.dumps([seconds, torch_seconds, new, changed]))
"""
HEAVY = ["onnx", "onnx_ir", "onnxruntime", "onnxscript", "torchvision", "sklearn", "PIL", "pandas", "IPython"]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Imports as an installed package is imported, from compiled files, which the first of them leaves."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    options = {"check": True, "capture_output": True, "text": True, "env": environment}
    return [json.loads(subprocess.run([sys.executable, "-c", PROBE], **options).stdout) for _ in range(4)]


def test_importing_edgeq_adds_less_than_150_ms_to_importing_torch_or_a_tenth_of_that_on_a_slow_machine(probes):
    seconds, torch_seconds = (min(probe[column] for probe in probes) for column in (0, 1))
    assert seconds < max(0.15, 0.1 * torch_seconds)


def test_importing_edgeq_loads_no_library_that_only_an_export_or_a_recipe_needs(probes):
    new = probes[0][2]
    assert "edgeq" in new
    assert [name for name in HEAVY if name in new] == []
    assert not any(name.startswith("torch_") for name in new)


def test_importing_edgeq_changes_no_setting_of_the_process(probes):
    assert probes[0][3] == {}


def test_importing_edgeq_prints_and_logs_nothing():
    code = "import torch, logging; logging.basicConfig(level=0); import edgeq"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_the_public_names_are_there_sorted_and_no_others():
    assert edgeq.__all__ == sorted(edgeq.__all__)
    modules = {name for name, value in vars(edgeq).items() if type(value).__name__ == "module"}
    public = {name for name in vars(edgeq) if not name.startswith("_")} - modules
    assert public == set(edgeq.__all__) - {"__version__"} - modules
    assert all(getattr(edgeq, name) is not None for name in edgeq.__all__)


def test_the_version_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", edgeq.__version__)
