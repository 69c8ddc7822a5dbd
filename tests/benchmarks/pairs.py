"""Interleaved timing: every side runs in every round, A B A B, so that other load on the machine affects all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Sample:
    """What one piece of work took: wall time, and processor time of client and server together, in seconds.

    Attributes:
        peak_bytes: peak resident memory, for work in its own process.
        done: how many things the work has done.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int = 0
    done: int = 0


Measure: TypeAlias = Callable[[], Sample]
Cpu: TypeAlias = Callable[[], float]


class Contest:
    """The samples of all sides, by round."""

    def __init__(self, samples: Mapping[str, list[Sample]]) -> None:
        self._samples = samples

    def wall_s(self, side: str) -> float:
        """The median time of a side."""
        return median(sample.wall_s for sample in self._samples[side])

    def cpu_s(self, side: str) -> float:
        """The median processor time of a side."""
        return median(sample.cpu_s for sample in self._samples[side])

    def peak_bytes(self, side: str) -> int:
        """The peak memory of a side in all rounds."""
        return max(sample.peak_bytes for sample in self._samples[side])

    def ratio(self, side: str, other: str) -> float:
        """How many times as long as the other a side takes: the median of the ratios per round."""
        return median(a.wall_s / b.wall_s for a, b in zip(self._samples[side], self._samples[other], strict=True))

    def cpu_ratio(self, side: str, other: str) -> float:
        """Same as ratio, for processor time: other load hardly affects it, and it does not include waiting."""
        return median(a.cpu_s / b.cpu_s for a, b in zip(self._samples[side], self._samples[other], strict=True))


def interleave(sides: Mapping[str, Measure], rounds: int, tick: Callable[[], None]) -> Contest:
    """Measure all sides in turn, once per round; `tick` is called after each measure."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            samples[name].append(measure())
            tick()
    return Contest(samples)


def extrapolated(measure: Measure, total: int) -> Measure:
    """A measure of a part, scaled as if it had done `total` things."""

    def measure_all() -> Sample:
        part = measure()
        return Sample(part.wall_s * total / part.done, part.cpu_s * total / part.done, part.peak_bytes, total)

    return measure_all


def clocked(work: Callable[[], object], times: int, server_cpu: Cpu) -> Sample:
    """Run work that makes `times` calls; the sample is of one call."""
    server_s = server_cpu()
    cpu_s, began_s = time.process_time(), time.perf_counter()
    work()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return Sample(wall_s / times, (cpu_s + server_cpu() - server_s) / times, done=times)


def repeated(call: Callable[[], Any], times: int, server_cpu: Cpu) -> Measure:
    """A measure of one call, as the mean of `times` calls. Calls it once at once, to connect and to warm up."""

    def work() -> None:
        for _ in range(times):
            call()

    call()
    return lambda: clocked(work, times, server_cpu)


def tails(sides: Mapping[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """The 99th percentile of the time of a call of each side, in seconds; the sides take turns call by call."""
    taken_s: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(times):
        for name, call in sides.items():
            began_s = time.perf_counter()
            call()
            taken_s[name].append(time.perf_counter() - began_s)
    return {name: quantiles(each, n=100)[98] for name, each in taken_s.items()}


def arepeated(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Any]], times: int, server_cpu: Cpu) -> Measure:
    """Same as repeated, for calls that are awaited one after the other in `loop`."""

    async def work() -> None:
        for _ in range(times):
            await call()

    async def once() -> None:
        await call()

    loop.run_until_complete(once())
    return lambda: clocked(lambda: loop.run_until_complete(work()), times, server_cpu)
