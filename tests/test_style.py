"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "edgeq").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
files = pytest.mark.parametrize("path", FILES, ids=NAMES)
MOST_LINES = 400


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """Absolute names of all modules that a file imports, also inside of functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def undocumented(path):
    """Public functions, classes and methods that begin something of their own: without a docstring."""
    module = importlib.import_module(module_name(path))
    if not module.__doc__:
        yield "the module"
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if own and inspect.isfunction(value) and not value.__doc__:
            yield name
        elif own and inspect.isclass(value):
            if not vars(value).get("__doc__") or vars(value)["__doc__"].startswith(f"{name}("):  # a dataclass makes one
                yield name
            for method, function in vars(value).items():
                inherited = any(hasattr(base, method) for base in value.__mro__[1:])
                function = getattr(function, "fget", None) or getattr(function, "__func__", function)
                plain = inspect.isfunction(function) and not method.startswith("_") and method != "forward"
                if plain and not inherited and not function.__doc__:
                    yield f"{name}.{method}"


@files
def test_every_public_name_says_what_it_is(path):
    assert list(undocumented(path)) == []


@files
def test_a_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@files
def test_nothing_is_printed_but_by_the_command_line(path):
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    printed = [f"line {node.lineno}" for node in calls if node.func.id == "print"]
    assert path.name == "cli.py" or printed == []


@files
def test_no_exception_is_swallowed_unnamed(path):
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    assert [f"line {handler.lineno}" for handler in handlers if handler.type is None] == []
    broad = [handler for handler in handlers if getattr(handler.type, "id", "") in ("Exception", "BaseException")]
    silent = [handler for handler in broad if not any(isinstance(node, ast.Raise) for node in ast.walk(handler))]
    assert [f"line {handler.lineno}" for handler in silent] == []


@files
def test_what_is_deprecated_or_a_recipes_is_not_imported(path):
    forbidden = re.compile(r"(torch\.(ao|quantization)|torchvision|tests|recipes|sklearn|PIL)(\.|$)")
    assert [name for name in imported(path) if forbidden.match(name)] == []
    assert not re.search(r"\btorch\.(ao|quantization)\.", path.read_text(encoding="utf-8").replace("``", ""))


@files
def test_errors_are_edgeqs_own(path):
    """Errors of Python are for what only a wrong program can do: an index, a missing override."""
    allowed = {"SpecError", "NothingToQuantizeError", "TraceError", "CalibrationError", "ExportError"}
    allowed |= {"NotImplementedError", "TypeError"}
    raised = [
        node.exc.func.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    ]
    allowed |= {"ValueError"} if path.name == "arithmetic.py" else set()
    assert sorted(set(raised) - allowed) == []


def test_every_logger_is_named_for_its_module():
    calls = re.compile(r"getLogger\((.*?)\)")
    assert {argument for path in FILES for argument in calls.findall(path.read_text(encoding="utf-8"))} == {"__name__"}


def test_onnx_is_imported_only_where_it_is_used():
    heavy = {
        module_name(path).rsplit(".", 1)[0]
        for path in FILES
        for node in tree(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
        if name.split(".")[0] in ("onnx", "onnx_ir", "onnxruntime", "onnxscript")
    }
    assert heavy <= {"edgeq.onnx", "edgeq.report"}


def test_no_file_of_the_project_names_a_place_on_one_machine():
    texts = [*FILES, *(ROOT / "recipes").rglob("*.py"), *(ROOT / "qconfigs").rglob("*.toml"), ROOT / "README.md"]
    place = re.compile(r"(?<![\w.])/(work|home|root|tmp|Users)/")
    assert [str(path) for path in texts if place.search(path.read_text(encoding="utf-8"))] == []


def test_every_folder_is_a_package_that_setup_finds():
    folders = {path.parent for path in FILES}
    assert all((folder / "__init__.py").exists() for folder in folders)
