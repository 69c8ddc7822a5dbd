"""The demo's worker processes: started, listened to, and ended with everything that they started.

They are plain subprocesses rather than `multiprocessing` ones: the demo then runs the same program as the containers of
`compose.yaml`, and its workers share nothing but Redis.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Final

from redis_sessions.client.url import PASSWORD_FILE_VARIABLE
from redis_sessions.demo.plan import PlannedTurn
from redis_sessions.demo.worker import Event

TICK_S: Final = 0.08
GRACE_S: Final = 2.0


class DemoError(Exception):
    """The demo can't continue; the text says why in one line."""


def run_workers(arguments: Sequence[str], url: str, shares: list[list[PlannedTurn]], log: Path) -> Generator[Event | None]:
    """Start a worker process for each share of the plan; all get their share at the same moment, when the last is ready.

    Yields each event until all have done their share, and None from time to time. However the generator ends, the workers
    end with it. Each has a session of its own, so a terminal's Ctrl-C reaches only us. Each also ends by itself when its
    stdin is closed, so none outlives us even if we are killed.

    Args: the workers' arguments and URL; the plan of each; the file that takes what they write to stderr. Raises DemoError
    when one fails.
    """
    # -P: nothing in the current directory is run.
    command = [sys.executable, "-P", "-m", "redis_sessions.demo.worker", "--plan-from-stdin", *arguments]
    # Any user of the machine can read arguments, but not the environment.
    environment = os.environ | {"REDIS_SESSIONS_URL": url, PASSWORD_FILE_VARIABLE: ""}
    workers: list[Any] = []  # their pipes are typed as optional
    # One pipe for all: a line is short enough to be written at once.
    events, stdout = os.pipe()
    try:
        try:
            with log.open("ab") as stderr:
                for _ in shares:
                    worker = Popen(
                        command, stdin=PIPE, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
                    )
                    workers.append(worker)
        finally:
            os.close(stdout)  # or it would never end
        starting, chunk, text = len(workers), b"-", b""
        while chunk:
            if select.select([events], [], [], TICK_S)[0]:
                chunk = os.read(events, 65_536)
                *lines, text = (text + chunk).split(b"\n")
                for event in (Event(**json.loads(line)) for line in lines):
                    if event.how != "ready":
                        yield event
                    elif not (starting := starting - 1):
                        for worker, share in zip(workers, shares, strict=True):
                            with suppress(BrokenPipeError):  # it has just ended, which is found out next
                                # Unbuffered: what a dead worker did not take is not written again at the end.
                                os.write(worker.stdin.fileno(), json.dumps(share).encode() + b"\n")
            for worker in workers:
                if code := worker.poll() if chunk else worker.wait(GRACE_S):
                    last_line = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                    raise DemoError(": ".join([f"a worker ended with exit code {code}", *last_line]))
            yield None
    finally:
        _end(workers, events)
        os.close(events)


def _end(workers: list[Any], events: int) -> None:
    """End the workers, by SIGKILL after a while, and what they have started."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    give_up_at_s = time.monotonic() + GRACE_S
    # Their stdout ends with them. As long as one is not reaped, the number of its group can't be given to another.
    while select.select([events], [], [], max(0.0, give_up_at_s - time.monotonic()))[0] and os.read(events, 65_536):
        pass
    for worker in workers:
        with worker:
            if worker.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)
