"""How many dispatches per second worker processes do, next to the same number of them with bare redis-py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from tests.benchmarks.crew import Crew
from tests.benchmarks.lab import Lab
from tests.benchmarks.rows import Chart, Row, each_second

WORKERS: Final = (1, 2, 4, 8)
PEER: Final = "redis-py get + set"
AT_LEAST: Final = 0.9


def workers(lab: Lab) -> Iterator[Row | Chart]:
    """Look up and save, in 1 to 8 processes."""
    server = lab.server()
    conversations = lab.scale.sizes[-1]
    rates: list[tuple[str, float, str]] = []
    with (
        Crew("ours", server.url, conversations, WORKERS[-1]) as ours,
        Crew("redis-py", server.url, conversations, WORKERS[-1]) as theirs,
    ):
        for count in WORKERS:
            sides = {
                "ours": partial(ours.hammer, count, lab.scale.hammer_s, server.cpu_s),
                PEER: partial(theirs.hammer, count, lab.scale.hammer_s, server.cpu_s),
            }
            contest = lab.contest(f"{count} workers", sides, lab.scale.hammer_rounds)
            rate = 1 / contest.ratio("ours", PEER)
            each_s = contest.wall_s("ours")
            yield Row(
                f"get + set, {count} processes, throughput",
                each_second(each_s),
                f"{PEER}: {each_second(contest.wall_s(PEER))}",
                f"{rate:.2f}",
                f"{1 / contest.cpu_ratio('ours', PEER):.2f}",
                f"≥ {AT_LEAST:.2f}",
                rate >= AT_LEAST,
            )
            rates.append((f"{count} processes", 1 / each_s, each_second(each_s)))
    yield Chart("Throughput, get + set, by worker processes", tuple(rates))
