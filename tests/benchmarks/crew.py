"""Worker processes that put load on a store: `python -m tests.benchmarks.crew KIND TARGET SESSIONS` is one of them.

A worker reports that it is ready, reads a number of seconds from stdin, runs dispatches of random conversations for that
time, reports the result, and waits for the next number; it ends with its stdin. All crews are started before the first
timing, so only work is timed.
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
    """Workers of one kind, as a context manager."""

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
        """Let the first `workers` of them work at once: a Sample of one dispatch, as if all were one worker."""
        chosen = self._workers[:workers]
        server_s = server_cpu()
        for worker in chosen:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        answers = [_answer(worker) for worker in chosen]
        done = sum(each["done"] for each in answers)
        rate = sum(each["done"] / each["wall_s"] for each in answers)
        cpu_s = sum(each["cpu_s"] for each in answers) + server_cpu() - server_s
        return Sample(1 / rate, cpu_s / done, done=done)


def _answer(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker has ended")
    return json.loads(line)


def main() -> None:
    """Run as a worker."""
    kind, target, sessions = sys.argv[1:]
    with asyncio.Runner() as runner:
        dispatch = runner.run(KINDS[kind](target))
        _put({})
        for line in sys.stdin:
            _put(runner.run(_hammer(dispatch, int(sessions), float(line))))


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


def _put(value: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
