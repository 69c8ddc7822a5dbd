"""`report --watch`: the report as it changes. Counters are read every second, keys no oftener than asked for."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import Options
from redis_sessions.cli.signals import until_asked_to_stop
from redis_sessions.errors import CorruptValue, InvalidSettings, SessionStoreError
from redis_sessions.text import count, duration, parse_duration_ms

if TYPE_CHECKING:
    from rich.console import RenderableType

    from redis_sessions.operations.report import Report
    from redis_sessions.store import SessionStore

DEFAULT_EVERY: Final = "10s"
LEAST_EVERY_MS: Final = 1_000
TICK_S: Final = 1.0
WINDOW_S: Final = 60.0
# How often a scan that is under way is shown.
FRAME_S: Final = 0.1
# No scan is begun sooner after one that failed, unless asked for oftener: the server may have too much to do already.
RETRY_S: Final = 10.0


@dataclass
class Failures:
    """Totals of the counter as they were read, for as long as a minute, or the last two."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, at_s: float, total: int) -> None:
        """Take a total. One that is lower than the last was begun anew."""
        if self.samples and total < self.samples[-1][1]:
            self.samples.clear()
        self.samples.append((at_s, total))
        while len(self.samples) > 2 and self.samples[0][0] < at_s - WINDOW_S:
            self.samples.popleft()

    def lately(self) -> tuple[int, int]:
        """How many were counted, and in how many milliseconds."""
        if not self.samples:
            return 0, 0
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        return last - first, round((last_s - first_s) * 1000)


@dataclass
class Watch:
    """What is known by now.

    Attributes:
        store: what is watched.
        every_s: the least time between two scans.
        due_at_s: when the next one is, by the monotonic clock.
        failures: the counter's past.
        report: the last one, None before the first.
        done: how far a scan under way is, from 0 to 1; None if none is.
        trouble: why Redis can't be read, None if it can.
        trouble_since_s: since when.
        scan_failed: whether it was the last scan that told so.
    """

    store: SessionStore
    every_s: float
    failures: Failures = field(default_factory=Failures)
    report: Report | None = None
    due_at_s: float = 0.0
    done: float | None = None
    trouble: SessionStoreError | None = None
    trouble_since_s: float = 0.0
    scan_failed: bool = False

    def look(self, redraw: Callable[[], None]) -> None:
        """Read the counter, and the keys if it is time to."""
        try:
            # What holds no integer, the report shows.
            with suppress(CorruptValue):
                self.failures.add(time.monotonic(), self.store.resume_failures_total())
            if time.monotonic() >= self.due_at_s:
                self._scan(redraw)
        except SessionStoreError as error:
            if self.trouble is None:
                self.trouble_since_s = time.monotonic()
            self.trouble = error
        else:
            # Of a scan that failed only the next one can say that all is well again.
            if not self.scan_failed:
                self.trouble = None
        finally:
            self.done = None

    def _scan(self, redraw: Callable[[], None]) -> None:
        self.scan_failed = True
        try:
            self.report = self.store.report(self._progress(redraw))
            self.scan_failed = False
        finally:
            self.due_at_s = time.monotonic() + (min(self.every_s, RETRY_S) if self.scan_failed else self.every_s)

    def _progress(self, redraw: Callable[[], None]) -> Callable[[int, int], None]:
        shown_at_s = 0.0

        def show_it(done: int, total: int) -> None:
            nonlocal shown_at_s
            if time.monotonic() - shown_at_s >= FRAME_S:
                shown_at_s = time.monotonic()
                self.done = done / total if total else 0.0
                redraw()

        return show_it


def watch_report(at: Options, every: str | None) -> int:
    """Watch until a signal ends it; see `report --help`. Raises InvalidSettings."""
    every_ms = parse_duration_ms(every or DEFAULT_EVERY, "--every")
    if every_ms < LEAST_EVERY_MS:
        raise InvalidSettings(
            "--every is less than a second, and each scan is work for the server", remedy="write 1s or more"
        )
    if not at.as_json and not _can_be_drawn_on():
        raise InvalidSettings("--watch needs a terminal to show it on", remedy="add --json for a line a scan")
    with until_asked_to_stop(), at.store() as store:
        watch = Watch(store, every_ms / 1000)
        (_print_lines if at.as_json else _draw)(watch)
    return exits.DONE


def _can_be_drawn_on() -> bool:
    """Whether stdout is a terminal on which Rich would move the cursor: on others it would show nothing at all."""
    from rich.console import Console

    console = Console()
    return show.is_terminal(sys.stdout) and console.is_terminal and console.is_interactive and not console.is_dumb_terminal


def _print_lines(watch: Watch) -> None:
    while True:
        watch.look(lambda: None)
        at_ms = round(time.time() * 1000)
        if watch.trouble is not None:
            show.put_json({"at_ms": at_ms, "error": watch.trouble.message})
        elif watch.report is not None:
            count, window_ms = watch.failures.lately()
            lately = {"at_ms": at_ms, "window_ms": window_ms, "window_failures": count}
            show.put_json(watch.report.model_dump(mode="json") | lately)
        if sys.stdout is not None:
            sys.stdout.flush()
        time.sleep(watch.every_s)


def _draw(watch: Watch) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop", redirect_stdout=False, redirect_stderr=False)

    def redraw() -> None:
        live.update(_view(watch), refresh=True)

    with live:
        redraw()
        while True:
            watch.look(redraw)
            redraw()
            time.sleep(TICK_S)


def _view(watch: Watch) -> RenderableType:
    from rich.console import Group

    from redis_sessions.cli.tables import report_sections

    # First what must not be cut off where the terminal is low.
    parts: list[Any] = [_state(watch)]
    if watch.report is not None:
        failures, window_ms = watch.failures.lately()
        if window_ms:
            parts.append(show.cell(f"{count(failures, 'resume')} refused in the last {duration(window_ms)}"))
        for section in report_sections(watch.report, watch.store.settings.namespace):
            parts += ["", section]
    return Group(*parts)


def _state(watch: Watch) -> RenderableType:
    now_s = time.monotonic()
    if watch.trouble is not None:
        since = duration(round((now_s - watch.trouble_since_s) * 1000))
        return show.cell(f"{watch.trouble.message}, for {since}; what is shown may be old", "bold red")
    if watch.done is not None or watch.report is None:
        return show.cell(f"scanning {watch.done or 0:.0%}", "dim")
    next_s = max(0, round(watch.due_at_s - now_s))
    approximate = "; keys may have been missed" if watch.report and watch.report.approximate else ""
    return show.cell(f"next scan in {duration(next_s * 1000)}, Ctrl-C ends{approximate}", "dim")
