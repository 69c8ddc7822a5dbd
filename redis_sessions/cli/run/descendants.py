"""The processes of one run, in whatever group or session they are: found, signalled, ended. Also a program that ends them.

A process is one of the run if it is in the run's group, has the run's token in its environment (Linux), descends from one of
these, or was one when it was last looked at: `timeout` and `setsid` put an agent into a group or session of its own, and an
agent does so with its tools, which have no parent left when it ends.

As a program: `python descendants.py GROUP TOKEN GRACE_S [PID STARTED]`. It imports nothing of this package: it must start
when all else is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

# An environment variable; a run within a run has both tokens.
VARIABLE: Final = "REDIS_SESSIONS_RUN"
_PROC = Path("/proc")
_PAUSE_S: Final = (0.01, 0.2)
# A process that the kernel keeps from ending, on a file system that hangs, is not waited for.
_KILLED_WITHIN_S: Final = 5.0


class Process(NamedTuple):
    """A process that runs. `started`: when, in the system's own form, so that a new one of the same number is told apart."""

    pid: int
    parent: int
    group: int
    started: str


class Family:
    """All processes of one run.

    Args:
        group: its process group, whose leader is not one of them.
        token: in the environment of those that were started with it.
        known: processes of it, by number, with when they started.
    """

    def __init__(self, group: int, token: str, known: dict[int, str] | None = None) -> None:
        self._group, self._token = group, token.encode()
        self._known = known or {}

    def add(self, pid: int) -> str:
        """Add a process, such as the agent itself; when it started."""
        started = next((each.started for each in _running() if each.pid == pid), "")
        self._known[pid] = started
        return started

    def look(self) -> list[Process]:
        """Those that run now."""
        running = [each for each in _running() if each.pid not in (os.getpid(), self._group)]
        found = {each.pid for each in running if self._is_one(each)}
        size = -1
        while size < len(found):
            size = len(found)
            found |= {each.pid for each in running if each.parent in found}
        ours = [each for each in running if each.pid in found]
        self._known |= {each.pid: each.started for each in ours}
        return ours

    def send(self, *numbers: int) -> None:
        """Send signals to each of them, once."""
        told = set[tuple[int, str]]()
        # Those of other groups, and then what they started meanwhile. Some have another parent by then.
        while new := [each for each in self.look() if each.group != self._group and (each.pid, each.started) not in told]:
            for each in new:
                for number in numbers:
                    _send(os.kill, each.pid, number)
            told |= {(each.pid, each.started) for each in new}
        for number in numbers:
            _send(os.killpg, self._group, number)

    def end(self, grace_s: float | None) -> None:
        """End them: SIGTERM, and after `grace_s` SIGKILL, at once for None; returns when none is left."""
        told: set[int] = set()
        kill = (signal.SIGKILL, _KILLED_WITHIN_S)
        for number, within_s in (kill,) if grace_s is None else ((signal.SIGTERM, grace_s), kill):
            until_s, pause_s = time.monotonic() + within_s, _PAUSE_S[0]
            while ours := self.look():
                for each in ours:
                    if number == signal.SIGKILL or each.pid not in told:
                        _send(os.kill, each.pid, number)
                        _send(os.kill, each.pid, signal.SIGCONT)
                told |= {each.pid for each in ours}
                if time.monotonic() >= until_s:
                    break
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _PAUSE_S[1])

    def _is_one(self, process: Process) -> bool:
        if process.group == self._group or self._known.get(process.pid) == process.started:
            return True
        try:
            return self._token in (_PROC / str(process.pid) / "environ").read_bytes()
        except OSError:
            return False


def _send(kill: object, whom: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(whom, number)  # type: ignore[operator] # os.kill or os.killpg


def _running() -> list[Process]:
    """All processes but those that have ended and were not waited for."""
    return _from_proc() if (_PROC / "self/stat").exists() else _from_ps()


def _from_proc() -> list[Process]:
    found = []
    for name in os.listdir(_PROC):  # noqa: PTH208 - hundreds of paths would be made for nothing
        if not name.isdigit():
            continue
        try:
            # Its name, in parentheses, may contain anything.
            words = (_PROC / name / "stat").read_text("latin-1").rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] not in "ZX":
            found.append(Process(int(name), int(words[1]), int(words[2]), words[19]))
    return found


def _from_ps() -> list[Process]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="],  # noqa: S607 - where it is differs by system
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        process_group=0,
    )
    rows = [line.split(None, 4) for line in listed.stdout.splitlines()]
    return [
        Process(int(row[0]), int(row[1]), int(row[2]), row[4]) for row in rows if len(row) == 5 and row[3][0] not in "ZX"
    ]


if __name__ == "__main__":
    _group, _token, _grace_s, *_agent = sys.argv[1:]
    Family(int(_group), _token, {int(_agent[0]): " ".join(_agent[1:])} if _agent else {}).end(float(_grace_s))
