"""Packaging: the code of `edgeq/`, and the presets and backends of `qconfigs/` as data inside of it."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "edgeq" / "version.py").read_text(encoding="utf-8"), VERSION)

FOLDERS = [path.parent.relative_to(ROOT) for path in sorted((ROOT / "edgeq").rglob("__init__.py"))]
PACKAGES = [".".join(folder.parts) for folder in FOLDERS]

setup(
    name="edgeq",
    version=VERSION["__version__"],
    description="From a trained PyTorch model to an integer model for edge accelerators, with proof that they agree",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=[*PACKAGES, "edgeq.qconfigs"],
    package_dir={"edgeq": "edgeq", "edgeq.qconfigs": "qconfigs"},
    package_data={"edgeq": ["py.typed"], "edgeq.qconfigs": ["*.toml", "backends/*.toml"]},
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "onnx>=1.18",
        "onnx-ir>=1.0",
        "onnxruntime>=1.20",
        "tqdm>=4.60",
    ],
    extras_require={
        "opset18": ["onnxscript>=0.5"],
        "recipes": ["torchvision", "scikit-learn", "pillow"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "onnxscript>=0.5", "scikit-learn"],
    },
)
