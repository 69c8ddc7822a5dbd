"""The figures of the demo: collected while it runs, checked and shown at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from redis_sessions.demo.plan import PlannedTurn
from redis_sessions.demo.worker import Event
from redis_sessions.legacy.transfer import ImportResult
from redis_sessions.operations.report import Report

WAYS: Final = ("resumed", "fresh", "restarted", "failed")


class RunFigures(BaseModel, frozen=True):
    """One run of the plan; resumed + fresh + restarted + failed = dispatches."""

    session_max_age_ms: int  # how long Redis kept an unused ID
    dispatches: int  # turns that were run
    resumed: int  # of these, those that resumed the conversation's session
    fresh: int  # those that started a new session, since no ID was known
    restarted: int  # those that started a new session after the agent had refused to resume the old one
    failed: int
    failures: tuple[str, ...]  # the first few of them, a line each
    wasted_resumes: int  # attempts to resume that the agent refused, from the agent's own journal
    wasted_ms: int  # how long those attempts took the workers
    waited_for_lease: int  # turns that waited for another worker's turn of the same conversation
    double_runs: int  # turns that ran at the same time as another one of their conversation, seen by the agent
    agent_starts: int
    live_ids: int  # session IDs in Redis at the end of the run
    live_ids_gone: int  # of these, those whose session the agent had forgotten by then
    late_ms: int  # how long after its planned time a turn began at worst
    duration_ms: int
    report: Report  # the store's own, at the end of the run


class ImportedEntry(BaseModel, frozen=True):
    """One entry of the legacy file; the verdict is "imported", "expired", or why it was rejected."""

    key: str
    idle_ms: int | None
    verdict: str


class Imported(BaseModel, frozen=True):
    """The import of the legacy file; `again` is the same import a second time."""

    result: ImportResult
    again: ImportResult
    entries: tuple[ImportedEntry, ...]
    report: Report


class DemoFigures(BaseModel, frozen=True):
    """All figures of the demo; `agent_keeps_ms` is how long the agent keeps an unused session, in milliseconds."""

    server: str
    workers: int
    turns: int
    seed: int
    agent_keeps_ms: int
    imported: Imported
    without_expiry: RunFigures
    with_expiry: RunFigures
    duration_ms: int

    @property
    def all_ran_once(self) -> bool:
        """Whether every turn ran, and none at the same time as another one of its conversation."""
        return not any(run.failed or run.double_runs for run in (self.without_expiry, self.with_expiry))


@dataclass(slots=True)
class Mark:
    """A turn on the time line of its conversation, which began `at_ms` milliseconds after the run did."""

    key: str
    at_ms: int
    sign: str  # `runs` or `waits`; at the end one of WAYS, or `waited`: resumed after waiting


class Course:
    """What the workers have reported of one run so far."""

    def __init__(self, shares: list[list[PlannedTurn]]) -> None:
        plan = sorted(turn for share in shares for turn in share)
        self.keys = list(dict.fromkeys(turn.key for turn in plan))
        self.turns = len(plan)
        self.length_ms = plan[-1].at_ms
        self.ways = Counter(dict.fromkeys(WAYS, 0))  # how many turns ended how
        self.marks: list[Mark] = []
        self.failures: list[str] = []
        self.waited = self.wasted_ms = self.late_ms = self.duration_ms = 0  # as in `RunFigures`
        self._began_s: float | None = None
        self._current: dict[int, Mark] = {}

    def add(self, worker: int, event: Event) -> None:
        """Count what a worker has just reported."""
        now_s = time.monotonic()
        self._began_s = self._began_s or now_s
        self.duration_ms = round((now_s - self._began_s) * 1000)
        if event.what == "began":
            self._current[worker] = Mark(event.key, self.duration_ms, "runs")
            self.marks.append(self._current[worker])
        elif event.what == "waits":
            self._current[worker].sign = "waits"
            self.waited += 1
        else:
            way = event.how or "failed"
            self._current[worker].sign = "waited" if event.waited and way == "resumed" else way
            self.ways[way] += 1
            self.wasted_ms += event.wasted_ms
            self.late_ms = max(self.late_ms, event.late_ms)
            self.failures += [f"{event.key}: {event.error}"] if event.error else []

    def figures(self, max_age_ms: int, report: Report, journal: str, live: set[str], known: set[str]) -> RunFigures:
        """The figures of a run that has ended.

        Args: the max age; the store's report; what the agent noted at its starts; the session IDs that Redis, and the
        agent, still have.
        """
        words = Counter(journal.split())
        return RunFigures(
            session_max_age_ms=max_age_ms,
            **self.ways,
            dispatches=self.ways.total(),
            failures=tuple(self.failures[:5]),
            wasted_resumes=words["gone"],
            wasted_ms=self.wasted_ms,
            waited_for_lease=self.waited,
            double_runs=words["double"],
            agent_starts=words["fresh"] + words["resumed"] + words["gone"],
            live_ids=len(live),
            live_ids_gone=len(live - known),
            late_ms=self.late_ms,
            duration_ms=self.duration_ms,
            report=report,
        )
