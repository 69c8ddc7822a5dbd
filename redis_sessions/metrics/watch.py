"""What metrics are made of: looks at stores, each of which keeps its last key scan."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass

from redis_sessions.errors import CorruptValue, SessionStoreError
from redis_sessions.operations.report import Report
from redis_sessions.store import SessionStore

log = logging.getLogger("redis_sessions")

# How long closing waits for a scan that is under way to end with its page.
CLOSE_WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a store saw.

    Attributes:
        namespace: of the store.
        counters: None if they could not be read.
        report: of the last scan that succeeded, None before the first.
        scanned_s: when that ended, on the monotonic clock.
        error: why the counters, or else a newer scan, could not be had.
    """

    namespace: str
    counters: dict[str, int | None] | None
    report: Report | None
    scanned_s: float
    error: SessionStoreError | None

    @property
    def up(self) -> int:
        return int(self.counters is not None)

    @property
    def age_s(self) -> float | None:
        return None if self.report is None else time.monotonic() - self.scanned_s

    @property
    def next_expiry_s(self) -> float | None:
        if self.report is None or self.report.soonest_expiry_ms is None:
            return None
        return max(0.0, self.report.soonest_expiry_ms / 1000 - (time.monotonic() - self.scanned_s))


class Turns:
    """A lock a process: a forked child may have inherited its parent's as somebody held it."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def mine(self) -> threading.Lock:
        """The lock of the process that asks."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


class _Closed(Exception):
    """Nobody wants to know what the scan would have told."""


class Watch:
    """Looks at one store, and keeps its last key scan. With None for `scan_wait_ms` it waits for every scan to end.

    Scans with the same `turns` go one after the other: side by side, each page would wait for those of all the others, and
    the workers with it.
    """

    def __init__(
        self, store: SessionStore, scan_max_age_ms: int, scan_wait_ms: int | None, turns: Turns | None = None
    ) -> None:
        self.store = store
        self._scan_max_age_s = scan_max_age_ms / 1000
        self._scan_wait_s = None if scan_wait_ms is None else scan_wait_ms / 1000
        self._turns = turns or Turns()
        self._own = Turns()
        self._closed = False
        self._scan: threading.Thread | None = None
        self._scan_failure: SessionStoreError | None = None
        self._report: tuple[Report, float] | None = None
        self._trouble: dict[str, str | None] = {}

    @property
    def namespace(self) -> str:
        """That of the store."""
        return self.store.settings.namespace

    def look(self) -> Look:
        """Read the counters, and scan if the last scan is too old. With Redis away it returns what it has."""
        counters, trouble = None, None
        try:
            counters = self.store.counters()
        except SessionStoreError as error:
            failure: SessionStoreError | None = error
            trouble = error
        else:
            scan = self._scan_if_old()
            if scan is not None:
                scan.join(self._scan_wait_s)
            failure = self._scan_failure
            if None in counters.values():
                failure = trouble = CorruptValue(
                    f"of namespace {self.namespace} a counter holds no integer",
                    remedy="redis-sessions doctor tells what mends it",
                )
        self._tell("counters", trouble)
        report, scanned_s = self._report or (None, 0.0)
        return Look(namespace=self.namespace, counters=counters, report=report, scanned_s=scanned_s, error=failure)

    def close(self) -> None:
        """Let a scan that is under way end with its page, tell no more troubles, and begin no further scan."""
        self._closed = True
        with self._lock:
            scan = self._scan
        if scan is not None:
            scan.join(CLOSE_WAIT_S)

    @property
    def _lock(self) -> threading.Lock:
        return self._own.mine()

    def _scan_if_old(self) -> threading.Thread | None:
        """The thread of a scan that is under way, or was begun here; None if the last one will do."""
        with self._lock:
            # After a fork the parent's is not alive here.
            if self._scan is None or not self._scan.is_alive():
                if self._closed:
                    return None
                if self._report is not None and time.monotonic() - self._report[1] < self._scan_max_age_s:
                    return None
                # A daemon: what a scan would have told holds up nobody's way out.
                self._scan = threading.Thread(target=self._scan_now, name="redis-sessions scan", daemon=True)
                self._scan.start()
            return self._scan

    def _scan_now(self) -> None:
        failure = None
        try:
            with self._turns.mine():
                self._go_on()
                self._report = (self.store.report(self._go_on), time.monotonic())
        except SessionStoreError as error:
            failure = error
        except Exception:
            # A client that is closed while it is being used may stumble over anything.
            if not self._closed:
                raise
        self._scan_failure = failure
        self._tell("key scan", failure)

    def _go_on(self, *_: int) -> None:
        if self._closed:
            raise _Closed

    def _tell(self, what: str, failure: SessionStoreError | None) -> None:
        """Log a trouble when it begins, changes or ends, not at every scrape."""
        now = None if failure is None else str(failure)
        with self._lock:
            before, self._trouble[what] = self._trouble.get(what), now
        if self._closed:
            return
        if now is not None and now != before:
            log.warning("metrics of namespace %s: no %s: %s", self.namespace, what, now)
        elif now is None and before is not None:
            log.warning("metrics of namespace %s: the %s can be had again", self.namespace, what)
