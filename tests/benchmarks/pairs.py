"""Timing in pairs: every side has its turn in every round, A B A B, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Sample:
    """What one piece of work took: by the clock, and of the processors, client and server together.

    Attributes:
        peak_bytes: most memory that was resident, of work in a process of its own.
        done: what the work counted, for the caller to check.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int = 0
    done: int = 0


Measure: TypeAlias = Callable[[], Sample]
Cpu: TypeAlias = Callable[[], float]


class Contest:
    """The samples of all sides, round by round."""

    def __init__(self, samples: Mapping[str, list[Sample]]) -> None:
        self._samples = samples

    def wall_s(self, side: str) -> float:
        """The median time of a side."""
        return median(sample.wall_s for sample in self._samples[side])

    def cpu_s(self, side: str) -> float:
        """The median processor time of a side."""
        return median(sample.cpu_s for sample in self._samples[side])

    def peak_bytes(self, side: str) -> int:
        """The most memory that a side ever had."""
        return max(sample.peak_bytes for sample in self._samples[side])

    def ratio(self, side: str, other: str) -> float:
        """How many times as long as the other a side takes: the median of the rounds' ratios."""
        return median(a.wall_s / b.wall_s for a, b in zip(self._samples[side], self._samples[other], strict=True))

    def cpu_ratio(self, side: str, other: str) -> float:
        """Same as ratio, of processor time: hardly disturbed by a busy machine, and blind to waiting."""
        return median(a.cpu_s / b.cpu_s for a, b in zip(self._samples[side], self._samples[other], strict=True))


def interleave(sides: Mapping[str, Measure], rounds: int, tick: Callable[[], None]) -> Contest:
    """Measure all sides in turn, as many times as there are rounds; `tick` is called after each."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            samples[name].append(measure())
            tick()
    return Contest(samples)


def extrapolated(measure: Measure, total: int) -> Measure:
    """A measure of a part, given as if it had done so many."""

    def measure_all() -> Sample:
        part = measure()
        return Sample(part.wall_s * total / part.done, part.cpu_s * total / part.done, part.peak_bytes, total)

    return measure_all


def clocked(work: Callable[[], object], times: int, server_cpu: Cpu) -> Sample:
    """Do work once that is so many calls; the sample is of one of them."""
    server_s = server_cpu()
    cpu_s, began_s = time.process_time(), time.perf_counter()
    work()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return Sample(wall_s / times, (cpu_s + server_cpu() - server_s) / times, done=times)


def repeated(call: Callable[[], Any], times: int, server_cpu: Cpu) -> Measure:
    """A measure of one call, taken over many in a row. It is made once at once, to connect and to warm up."""

    def work() -> None:
        for _ in range(times):
            call()

    call()
    return lambda: clocked(work, times, server_cpu)


def arepeated(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Any]], times: int, server_cpu: Cpu) -> Measure:
    """Same as repeated, awaited one after the other in a loop that runs only then."""

    async def work() -> None:
        for _ in range(times):
            await call()

    async def once() -> None:
        await call()

    loop.run_until_complete(once())
    return lambda: clocked(lambda: loop.run_until_complete(work()), times, server_cpu)
