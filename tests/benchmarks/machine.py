"""Describes the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def load() -> float:
    """The load average of the last minute; 0 on an idle machine."""
    return os.getloadavg()[0]


def facts(servers: list[str], load_before: float) -> list[str]:
    """Machine, system, Python, servers, packages, and the load before the run, which affects every figure."""
    system = f"{platform.system()} {platform.release()}"
    return [
        f"{_processor()}, {os.cpu_count()} cores, {system}, load average {load_before:.1f} before the run",
        f"{platform.python_implementation()} {platform.python_version()}, {', '.join(servers) or 'no server'}",
        ", ".join(f"{name} {installed(name) or 'not installed'}" for name in ("redis", "hiredis", "pydantic")),
    ]


def installed(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
