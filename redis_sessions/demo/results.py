"""The figures of the demo, collected while it runs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from redis_sessions.demo.plan import PlannedTurn
from redis_sessions.demo.worker import Event

WAYS: Final = ("resumed", "fresh", "restarted", "failed")


class DemoFigures(NamedTuple):
    """What the demo has counted in its two runs of the plan.

    Each counts its turns by how they ended ("resumed", "fresh", "restarted" after a refusal, "failed"), those that "waited"
    for another worker, the "double_runs" that the agent saw, and the time that the refusals took in "wasted_ms".
    `session_max_age_ms` is how long Redis kept an unused ID.
    """

    server: str
    workers: int
    turns: int
    agent_keeps_ms: int
    without_expiry: dict[str, int]
    with_expiry: dict[str, int]

    @property
    def all_ran_once(self) -> bool:
        """Whether every turn ran, and none at the same time as another one of its conversation."""
        return not any(run["failed"] or run["double_runs"] for run in (self.without_expiry, self.with_expiry))


@dataclass(slots=True)
class Mark:
    """A turn on the time line of its conversation, which began `at_ms` milliseconds after the run did."""

    key: str
    at_ms: int
    sign: str  # `runs` or `waits`; at the end one of WAYS, or `waited`: resumed after waiting


class Course:
    """What the workers have reported of one run so far."""

    def __init__(self, shares: list[list[PlannedTurn]], max_age_ms: int) -> None:
        plan = sorted(turn for share in shares for turn in share)
        self.keys = list(dict.fromkeys(turn.key for turn in plan))
        self.turns = len(plan)
        self.length_ms = plan[-1].at_ms
        self.counts = Counter({"session_max_age_ms": max_age_ms, "waited": 0, "double_runs": 0, "wasted_ms": 0})
        self.counts.update(dict.fromkeys(WAYS, 0))
        self.marks: list[Mark] = []
        self._began_s: float | None = None
        self._current: dict[int, Mark] = {}

    @property
    def done(self) -> int:
        """How many turns have ended."""
        return sum(self.counts[way] for way in WAYS)

    def add(self, event: Event) -> None:
        """Count what a worker has just reported."""
        now_s = time.monotonic()
        self._began_s = self._began_s or now_s
        if event.what == "began":
            self._current[event.worker] = Mark(event.key, round((now_s - self._began_s) * 1000), "runs")
            self.marks.append(self._current[event.worker])
        elif event.what == "waits":
            self._current[event.worker].sign = "waits"
            self.counts["waited"] += 1
        else:
            way = event.how or "failed"
            self._current[event.worker].sign = "waited" if event.waited and way == "resumed" else way
            self.counts.update({way: 1, "double_runs": not event.alone, "wasted_ms": event.wasted_ms})
