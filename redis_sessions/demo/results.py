"""The figures of the demo: counted while it runs, told at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from redis_sessions.demo.plan import Dispatch
from redis_sessions.demo.turns import Event
from redis_sessions.legacy.transfer import ImportResult
from redis_sessions.operations.report import Report


class RunFigures(BaseModel):
    """One run of the plan; resumed + fresh + restarted + failed = dispatches.

    Attributes:
        session_max_age_ms: how long the store kept an ID that was not used, in milliseconds.
        dispatches: turns that were dispatched.
        resumed: of these, those that resumed the conversation's session.
        fresh: those that started a new one, for none was known.
        restarted: those that started a new one after the agent had refused the old one.
        failed: those that failed.
        failures: the first few of them, a line each.
        wasted_resumes: attempts to resume that the agent refused, by the agent's own journal.
        wasted_ms: time that the workers spent on them, in milliseconds.
        waited_for_lease: dispatches that waited for another worker's turn of the same conversation.
        double_runs: turns that ran while another one of the same conversation did, seen by the agent.
        agent_starts: how often the agent was started.
        live_ids: session IDs in Redis at the end of the run.
        live_ids_gone: of these, those that the agent had forgotten by then.
        late_ms: how long after its time a dispatch began at worst, in milliseconds.
        duration_ms: the run, in milliseconds.
        report: the store's own report at the end of the run.
    """

    model_config = ConfigDict(frozen=True)

    session_max_age_ms: int
    dispatches: int
    resumed: int
    fresh: int
    restarted: int
    failed: int
    failures: tuple[str, ...]
    wasted_resumes: int
    wasted_ms: int
    waited_for_lease: int
    double_runs: int
    agent_starts: int
    live_ids: int
    live_ids_gone: int
    late_ms: int
    duration_ms: int
    report: Report


class ImportedEntry(BaseModel):
    """What became of one entry of the legacy file: "imported", "expired", or the reason why it was rejected."""

    model_config = ConfigDict(frozen=True)

    key: str
    idle_ms: int | None
    verdict: str


class Imported(BaseModel):
    """The import of the legacy file; `again` is the same import a second time."""

    model_config = ConfigDict(frozen=True)

    result: ImportResult
    again: ImportResult
    entries: tuple[ImportedEntry, ...]
    report: Report


class DemoFigures(BaseModel):
    """All that the demo found out; `agent_keeps_ms` is how long the agent keeps a session that is not used."""

    model_config = ConfigDict(frozen=True)

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
    def kept_its_promise(self) -> bool:
        """Whether every turn ran, and none beside another one of its conversation."""
        runs = (self.without_expiry, self.with_expiry)
        return not any(run.failed or run.double_runs for run in runs)


@dataclass(slots=True)
class Tally:
    """What one worker has told so far, or all of them together.

    Attributes:
        ways: how the dispatches that ended went: `resumed`, `fresh`, `restarted`, `failed`.
        now: what the worker does, and `waits` whether that is waiting for a lease.
    """

    ways: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    waited: int = 0
    wasted_ms: int = 0
    late_ms: int = 0
    now: str = "starts"
    waits: bool = False

    @property
    def done(self) -> int:
        """Dispatches that ended."""
        return self.ways.total()

    def add(self, event: Event) -> None:
        """Count what an event tells."""
        self.waits = event.what == "waits"
        match event.what:
            case "began":
                self.now = f"runs {event.key}"
            case "waits":
                self.now = f"waits for the lease of {event.key}"
                self.waited += 1
            case "done" | "failed":
                self.now = ""
                self.ways[event.how or "failed"] += 1
                self.wasted_ms += event.wasted_ms
                self.late_ms = max(self.late_ms, event.late_ms)
                if event.error:
                    self.failures.append(f"{event.key}: {event.error}")


@dataclass(frozen=True, slots=True)
class Mark:
    """A dispatch on the time line of its conversation.

    Attributes:
        key: the conversation.
        at_ms: when it began, in milliseconds after the run did.
        sign: how it went, one of `Tally.ways`, or `waited` if it resumed after waiting; `runs` and `waits` until then.
    """

    key: str
    at_ms: int
    sign: str


class Course:
    """The course of one run, as its workers tell it.

    Attributes:
        keys: its conversations, those of the first dispatches first.
        turns: how many dispatches there are to be.
        length_ms: when the last of them is to begin, in milliseconds after the start.
        total: all workers together.
        workers: each of them.
        marks: every dispatch that began.
        duration_ms: from the first event to the last, in milliseconds.
    """

    def __init__(self, shares: list[list[Dispatch]]) -> None:
        plan = sorted(dispatch for share in shares for dispatch in share)
        self.keys = list(dict.fromkeys(dispatch.key for dispatch in plan))
        self.turns = len(plan)
        self.length_ms = plan[-1].at_ms
        self.total = Tally()
        self.workers = [Tally() for _ in shares]
        self.marks: list[Mark] = []
        self.duration_ms = 0
        self._began_s: float | None = None
        self._current: dict[int, int] = {}

    def add(self, worker: int, event: Event) -> None:
        """Count what a worker told, now."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        self.duration_ms = round((now_s - self._began_s) * 1000)
        self.total.add(event)
        self.workers[worker].add(event)
        if event.what == "began":
            self._current[worker] = len(self.marks)
            self.marks.append(Mark(event.key, self.duration_ms, "runs"))
            return
        number = self._current[worker]
        sign = "waits" if event.what == "waits" else event.how or "failed"
        self.marks[number] = replace(self.marks[number], sign="waited" if event.waited and sign == "resumed" else sign)


def run_figures(
    course: Course, report: Report, *, max_age_ms: int, journal: Path, live: frozenset[str], known: frozenset[str]
) -> RunFigures:
    """The figures of a run that has ended.

    Args:
        course: what its workers told.
        report: the store's own.
        max_age_ms: how long the store kept an ID that was not used.
        journal: what the agent wrote of its starts.
        live: session IDs that Redis held at the end.
        known: session IDs that the agent still had at the end.
    """
    words = Counter(journal.read_text().split())
    total = course.total
    return RunFigures(
        session_max_age_ms=max_age_ms,
        dispatches=total.done,
        resumed=total.ways["resumed"],
        fresh=total.ways["fresh"],
        restarted=total.ways["restarted"],
        failed=total.ways["failed"],
        failures=tuple(total.failures[:5]),
        wasted_resumes=words["gone"],
        wasted_ms=total.wasted_ms,
        waited_for_lease=total.waited,
        double_runs=words["double"],
        agent_starts=words["fresh"] + words["resumed"] + words["gone"],
        live_ids=len(live),
        live_ids_gone=len(live - known),
        late_ms=total.late_ms,
        duration_ms=course.duration_ms,
        report=report,
    )
