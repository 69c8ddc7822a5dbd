"""Work on a store while its server fails, written down as each worker saw it, and held against what is there afterwards.

Each worker is a thread. Some set IDs under keys of their own, and read them back; some resume conversations that all share;
some count. An ID names its key and its number, so that no reply can be mistaken for another key's or an older one.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from redis_sessions import AsyncSessionStore, LeaseHeld, ResumeResult, SessionStore, SessionStoreError, StoreSettings, Turn
from tests.faults.ledger import Tally
from tests.servers import wait_until
from tests.stores import Blocking, Loop

T = TypeVar("T")

OWN_KEYS: Final = 24
SHARED_KEYS: Final = 6
PAUSE_S: Final = 0.002
RUN_S: Final = 0.004
AWAY: Final = "store unavailable"
# How long operations may ride out a failover on a machine however busy. The default is for `long` on a quiet one.
PATIENCE_MS: Final = 60_000


def patience(rounds: int) -> dict[str, int]:
    """The settings of stores for that many failovers."""
    return {"deadline_ms": PATIENCE_MS} if rounds == 1 else {}


@contextmanager
def both(url: str, loop: Loop, namespace: str, **settings: Any) -> Iterator[tuple[SessionStore, Any]]:
    """A store of each flavor, called alike."""
    chosen = StoreSettings(namespace=namespace, **settings)
    with SessionStore.from_url(url, chosen) as sync:
        other = Blocking(AsyncSessionStore.from_url(url, chosen), loop)
        try:
            yield sync, other
        finally:
            other.close()


@dataclass(slots=True)
class Save:
    """One `set`, as its worker saw it: `acked_s` is None unless it returned."""

    number: int
    began_s: float
    acked_s: float | None = None


@dataclass(slots=True)
class Ran:
    """One run of a shared conversation, and what its caller learned."""

    asked: str | None
    gave: str
    called_s: float
    began_s: float
    ended_s: float = 0.0
    returned_s: float = float("inf")
    saved: bool = False
    reason: str | None = None

    @property
    def informed(self) -> bool:
        """Whether its caller knows that something was amiss."""
        return not self.saved or self.reason is not None


@dataclass
class Findings:
    """What came of a load, beyond its tally.

    Attributes:
        young: acknowledged saves and counts that are gone, but had been acknowledged just before a fault.
        longest_s: the longest operation.
        errors: the first few untyped errors, and what was lost, for debugging.
    """

    young: int = 0
    longest_s: float = 0.0
    errors: list[str] = field(default_factory=list)


class Load:
    """Workers on stores of one namespace. In a `with` they work; after it, `settle` says what came of it.

    Args:
        stores: each gets two workers that set, two that resume and one that counts.
        pause_s: between two operations of a worker, which leaves the servers some of a small machine.
    """

    def __init__(self, stores: Iterable[Any], *, pause_s: float = PAUSE_S) -> None:
        self.saves: dict[str, list[Save]] = defaultdict(list)
        self.runs: dict[str, list[Ran]] = defaultdict(list)
        self.faults_s: list[float] = []
        self.refusals: list[tuple[str, SessionStoreError]] = []
        self.counted: list[tuple[int, float]] = []
        self.acked_s: dict[str, float] = {}
        self._counts_tried = 0
        self._operations = 0
        self._findings = Findings()
        self._untyped = 0
        self._wrong: set[str] = set()
        self._missing: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._pause_s = pause_s
        self._threads: list[threading.Thread] = []
        for number, store in enumerate(stores):
            for kind in (self._set, self._set, self._resume, self._resume, self._count):
                name = f"w{number}{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, args=(kind, store, name)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def fault(self) -> float:
        """Write down that a fault is injected now."""
        self.faults_s.append(time.monotonic())
        return self.faults_s[-1]

    def goes_on(self, since_s: float | None = None) -> None:
        """Wait until each worker has had an operation acknowledged that it began later than that; None: than now."""
        after_s = time.monotonic() if since_s is None else since_s
        wait_until(
            lambda: len(self.acked_s) == len(self._threads) and all(began_s > after_s for began_s in self.acked_s.values()),
            "every worker goes on by itself",
        )

    @property
    def operations(self) -> int:
        """How many operations have ended, whichever way."""
        return self._operations

    def settle(self, store: Any, tally: Tally, *, young_s: float = 0.0, young_counts_s: float = 0.0) -> Findings:
        """Hold what is there against what was acknowledged, and add it all up in the tally.

        Args:
            store: to read with; the fault is over.
            tally: of this fault.
            young_s: what was acknowledged this shortly before a fault may be gone, as replication is asynchronous.
            young_counts_s: the same for single counts alone, which wait for no replica.
        """
        for key in self.saves:
            self._look(key, store.get(key))
        doubles = reported = 0
        for key, runs in self.runs.items():
            self._follow(key, runs, store.get(key))
            for one, other in _overlaps(runs):
                reported += one.informed or other.informed
                doubles += not (one.informed or other.informed)
        lost, young = self._gone(young_s)
        total = store.resume_failures_total()
        same = len(self.counted) - len({count for count, _ in self.counted})
        short = max(same, len(self.counted) - total, 0)
        counts_s = max(young_s, young_counts_s)
        excused = min(short, sum(self._is_young(acked_s, acked_s, counts_s) for _, acked_s in self.counted))
        over = max(0, total - self._counts_tried)
        if short > excused or over:
            self._findings.errors.append(f"counted {len(self.counted)} of {self._counts_tried}, twice {same}, found {total}")
        self._findings.errors += sorted(self._wrong)
        self._findings.young = len(young) + excused
        tally.injected += len(self.faults_s)
        tally.operations += self._operations
        tally.refused += len(self.refusals)
        tally.lost += len(lost) + short - excused + over
        tally.wrong += len(self._wrong)
        tally.untyped += self._untyped
        tally.double_runs += doubles
        tally.reported += reported
        return self._findings

    def _work(self, kind: Callable[[Any, str, int], None], store: Any, name: str) -> None:
        for number in itertools.count(1):
            if self._over.wait(self._pause_s):
                return
            kind(store, name, number)

    def _set(self, store: Any, name: str, number: int) -> None:
        key = f"{name}:{number % OWN_KEYS}"
        save = Save(number, time.monotonic())
        self.saves[key].append(save)
        if self._try(name, lambda: (store.set(key, f"{key}:{number}"), True), "set") is not None:
            save.acked_s = time.monotonic()
        found = self._try(name, lambda: (store.get(key), True), "get")
        if found is not None:
            self._look(key, found[0])

    def _resume(self, store: Any, name: str, number: int) -> None:
        key = f"shared:{random.randrange(SHARED_KEYS)}"
        called_s = time.monotonic()
        ran: list[Ran] = []

        def run(asked: str | None) -> Turn[None]:
            ran.append(Ran(asked, f"{key}:{name}.{number}", called_s, time.monotonic()))
            with self._lock:
                self.runs[key].append(ran[0])
            self._over.wait(RUN_S)
            ran[0].ended_s = time.monotonic()
            return Turn(ran[0].gave, None)

        result: ResumeResult[None] | None = self._try(name, lambda: store.resume(key, run, wait_ms=300), "resume")
        if result is not None:
            # Only a save that replicas have, where they were asked for, counts as acknowledged.
            ran[0].saved, ran[0].reason = result.saved and result.replicated is not False, result.reason
            ran[0].returned_s = time.monotonic()

    def _count(self, store: Any, name: str, number: int) -> None:
        with self._lock:
            self._counts_tried += 1
        count = self._try(name, store.increment_resume_failures, "count")
        if count is not None:
            with self._lock:
                self.counted.append((count, time.monotonic()))

    def _try(self, name: str, operation: Callable[[], T], what: str) -> T | None:
        """What the operation returns; None if it raised."""
        began_s = time.monotonic()
        try:
            result = operation()
        except LeaseHeld:
            result = None  # an answer: somebody else runs it
        except SessionStoreError as error:
            result = None
            with self._lock:
                self.refusals.append((what, error))
        except Exception:  # noqa: BLE001 - it is what is looked for
            result = None
            with self._lock:
                self._untyped += 1
                if len(self._findings.errors) < 5:
                    self._findings.errors.append(traceback.format_exc())
        else:
            if not isinstance(result, ResumeResult) or (result.saved and result.replicated is not False):
                self.acked_s[name] = began_s
        with self._lock:
            self._operations += 1
            self._findings.longest_s = max(self._findings.longest_s, time.monotonic() - began_s)
        return result

    def _look(self, key: str, found: str | None) -> None:
        """Hold a reply against what its key's one worker has saved: no older than what was last acknowledged."""
        saves = self.saves[key]
        tried = {f"{key}:{save.number}": at for at, save in enumerate(saves)}
        acked = [at for at, save in enumerate(saves) if save.acked_s is not None]
        if found is not None and found not in tried:
            self._wrong.add(f"{found} in the place of {key}")
        elif acked and (found is None or tried[found] < acked[-1]):
            gone = saves[acked[-1]]
            acked_s = gone.acked_s or 0.0
            self._missing[f"{key}:{gone.number}, found {found}"] = (acked_s, acked_s)

    def _follow(self, key: str, runs: list[Ran], at_last: str | None) -> None:
        """Each run that was under a lease resumes what was last saved before its call, or what may have been saved since."""
        by_id = {run.gave: run for run in runs}
        end_s = time.monotonic()
        looks = [(run.asked, run.called_s, run.gave) for run in runs if AWAY not in (run.reason or "")]
        for asked, called_s, who in [*looks, (at_last, end_s, "the end")]:
            before = [run for run in runs if run.saved and run.returned_s <= called_s]
            if asked is not None and asked not in by_id:
                self._wrong.add(f"{asked} in the place of {key}")
            elif before:
                last = max(before, key=lambda run: run.ended_s)
                if asked is None or by_id[asked].returned_s < last.ended_s:
                    # Its save was acknowledged some time between these: a count may have been waited for, too.
                    self._missing[f"{last.gave}, {who} found {asked}"] = (last.ended_s, last.returned_s)

    def _gone(self, young_s: float) -> tuple[list[str], list[str]]:
        young = [what for what, acked in self._missing.items() if self._is_young(*acked, young_s)]
        lost = [what for what in self._missing if what not in young]
        self._findings.errors += [f"lost {what}" for what in lost[:5]]
        return lost, young

    def _is_young(self, from_s: float, to_s: float, young_s: float) -> bool:
        return young_s > 0 and any(from_s < fault_s + young_s and to_s > fault_s - young_s for fault_s in self.faults_s)


def _overlaps(runs: list[Ran]) -> Iterable[tuple[Ran, Ran]]:
    ordered = sorted(runs, key=lambda run: run.began_s)
    for at, one in enumerate(ordered):
        for other in itertools.takewhile(lambda run, one=one: run.began_s < one.ended_s, ordered[at + 1 :]):
            yield one, other
