"""What the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import edgeq

CPU_INFO = Path("/proc/cpuinfo")


def has_vnni() -> bool:
    """Whether the CPU adds products of 8-bit integers in one instruction, as far as the system tells."""
    return any(flag in _cpu_info("flags").split() for flag in ("avx512_vnni", "avx_vnni"))


def environment() -> dict[str, str]:
    """Versions, CPU and threads."""
    return {
        "edgeq": edgeq.__version__,
        "torch": torch.__version__,
        "CPU": _cpu_info("model name") or platform.processor() or platform.machine(),
        "VNNI": "yes" if has_vnni() else "no",
        "threads": str(torch.get_num_threads()),
    }


def _cpu_info(key: str) -> str:
    """A line of Linux's description of the first CPU; empty where there is none."""
    if not CPU_INFO.exists():
        return ""
    pairs = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
