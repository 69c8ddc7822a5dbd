"""Describes the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def load() -> float:
    """The load average of the last minute; 0 on an idle machine."""
    return os.getloadavg()[0]


def placements() -> tuple[bool, ...]:
    """Whether client and server are kept `apart`, in each of the ways in which that can be chosen here."""
    return (False, True) if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1 else (False,)


@contextmanager
def placed(server_pid: int, *, apart: bool) -> Iterator[None]:
    """Keep this process and a server on one core, or each on a core of its own; does nothing where there is no choice.

    Linux moves them together and apart as it likes, from one second to the next. Apart, each call wakes an idle core twice,
    which takes a virtual machine more time than all the rest: a ratio would say where they happened to be.
    """
    if len(placements()) == 1:
        yield
        return
    pids = (0, server_pid)
    before = [os.sched_getaffinity(pid) for pid in pids]
    *_, other, last = sorted(before[0])
    for pid, core in zip(pids, (last, other if apart else last), strict=True):
        os.sched_setaffinity(pid, {core})
    try:
        yield
    finally:
        for pid, cores in zip(pids, before, strict=True):
            os.sched_setaffinity(pid, cores)


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
