"""Worker processes that hammer a store for a while: `python -m tests.benchmarks.crew KIND TARGET SESSIONS` is one of them.

A worker says that it is ready, then reads a number of seconds from its standard input, dispatches random conversations for
so long, says what came of it, and waits for the next number; the end of its input ends it. All crews are started before the
first timing, so that only work is timed.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

from tests.benchmarks.lab import ROOT
from tests.benchmarks.pairs import Cpu, Sample
from tests.benchmarks.peers import KINDS


class Crew:
    """Workers of one kind. Use it in a `with`."""

    def __init__(self, kind: str, target: str, sessions: int, workers: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.crew", kind, target, str(sessions)]
        self._workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(workers)
        ]

    def __enter__(self) -> Self:
        try:
            for worker in self._workers:
                _answer(worker)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.communicate()

    def hammer(self, workers: int, seconds: float, server_cpu: Cpu) -> Sample:
        """Let some of them work side by side: the time that a dispatch took, all of them taken as one worker."""
        chosen = self._workers[:workers]
        server_s = server_cpu()
        for worker in chosen:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        told = [_answer(worker) for worker in chosen]
        done = sum(each["done"] for each in told)
        rate = sum(each["done"] / each["wall_s"] for each in told)
        cpu_s = sum(each["cpu_s"] for each in told) + server_cpu() - server_s
        return Sample(1 / rate, cpu_s / done, done=done)


def _answer(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker has ended")
    return json.loads(line)


def main() -> None:
    """Be a worker."""
    kind, target, sessions = sys.argv[1:]
    with asyncio.Runner() as runner:
        dispatch = runner.run(KINDS[kind](target))
        _tell({})
        for line in sys.stdin:
            _tell(runner.run(_hammer(dispatch, int(sessions), float(line))))


async def _hammer(dispatch: Any, sessions: int, seconds: float) -> dict[str, float]:
    chance = random.Random()
    awaits = inspect.iscoroutinefunction(dispatch)
    done = 0
    cpu_s, began_s = time.process_time(), time.perf_counter()
    until_s = began_s + seconds
    while done == 0 or time.perf_counter() < until_s:
        number = chance.randrange(sessions)
        if awaits:
            await dispatch(number)
        else:
            dispatch(number)
        done += 1
    return {"done": done, "wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_s}


def _tell(value: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
