"""The figures of the demo, collected while it runs."""

from __future__ import annotations

import time
from collections import Counter
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


class Mark(NamedTuple):
    """A turn on the time line of its conversation, which began `at_ms` milliseconds after the run did."""

    key: str
    at_ms: int
    sign: str  # one of WAYS, or `waited`: resumed after waiting


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
        self._began_s = 0.0

    def add(self, turn: Event) -> None:
        """Count a turn that a worker has just reported."""
        then_s = time.monotonic() - turn.took_ms / 1000
        self._began_s = self._began_s or then_s
        sign = "waited" if turn.waited and turn.how == "resumed" else turn.how
        self.marks.append(Mark(turn.key, max(0, round((then_s - self._began_s) * 1000)), sign))
        self.counts.update([turn.how], waited=turn.waited, double_runs=not turn.alone, wasted_ms=turn.wasted_ms)
