"""`report` and `report --watch`: the report once, or live. Live, it reads the counter every second and scans as asked."""

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import Options, on_a_store, say_empty, value
from redis_sessions.cli.signals import Signals, until_asked_to_stop
from redis_sessions.errors import CorruptValue, InvalidSettings, SessionStoreError
from redis_sessions.operations.text import count, duration, parse_duration_ms

if TYPE_CHECKING:
    from rich.console import RenderableType

    from redis_sessions.operations.report import Report
    from redis_sessions.store import SessionStore

DEFAULT_EVERY: Final = "10s"
LEAST_EVERY_MS: Final = 1_000
TICK_S: Final = 1.0
WINDOW_S: Final = 60.0
# How often the progress of a scan is shown.
FRAME_S: Final = 0.1
# The least time to the next scan after one that failed, unless less was asked for: the server may be overloaded.
RETRY_S: Final = 10.0

Watch = Annotated[bool, typer.Option("--watch", help="Stay, and show what changes, until Ctrl-C.")]
Every = Annotated[
    str | None, value("--every", "TIME", "With --watch: time between two key scans.", show_default=DEFAULT_EVERY)
]


@on_a_store
def report(at: Options, *, watch: Watch = False, every: Every = None) -> int:
    """Scan all session keys and report on them.

    How many sessions are live, how long they have been idle, which keys hold something other than a session ID, and how
    often an agent refused to resume. Nothing is deleted: Redis does that. If the scan may have missed keys, such as when
    slots of a cluster moved, stderr says so.

    With --watch, it stays until Ctrl-C and shows at a terminal what changes, and refusals per minute; while Redis is away it
    says so, and continues. With --json as well, each scan is a line, for other programs.

    Examples:
      redis-sessions report
      redis-sessions report --watch --every 30s
      redis-sessions report --namespace sessions.claude@build-7
      redis-sessions report --json | jq .counters.resume_failures_total
    """
    if watch:
        return _watch(at, every)
    if every is not None:
        raise InvalidSettings("--every is for --watch", remedy="give both, or neither")
    with at.store() as store:
        with show.progress("scanning") as progress:
            found = store.report(progress)
        namespace = store.settings.namespace
        at.put_result(found, lambda: show.display(*tables.report_sections(found, namespace)))
        if not (found.live or found.invalid or found.near_scheme):
            say_empty(store)
    return exits.DONE


@dataclass
class RecentFailures:
    """Totals of the counter as they were read, for the last minute, or the last two."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, at_s: float, total: int) -> None:
        """Take a total. If it is lower than the last one, the counter was reset."""
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
class LiveReport:
    """What is known so far of a store."""

    store: "SessionStore"
    every_s: float  # the least time between two scans
    failures: RecentFailures = field(default_factory=RecentFailures)
    report: "Report | None" = None  # the last one
    due_at_s: float = 0.0  # when the next scan is, on the monotonic clock
    done: float | None = None  # how far a scan in progress is, from 0 to 1
    trouble: SessionStoreError | None = None  # why Redis can't be read
    trouble_since_s: float = 0.0
    scan_failed: bool = False  # the last one

    def look(self, redraw: Callable[[], None]) -> None:
        """Read the counter, and the keys if they are due."""
        try:
            # If it is not an integer the report shows that.
            with suppress(CorruptValue):
                self.failures.add(time.monotonic(), self.store.resume_failures_total())
            if time.monotonic() >= self.due_at_s:
                self._scan(redraw)
        except SessionStoreError as error:
            if self.trouble is None:
                self.trouble_since_s = time.monotonic()
            self.trouble = error
        else:
            # After a scan that failed only the next one can show that all is well again.
            if not self.scan_failed:
                self.trouble = None
        finally:
            self.done = None

    def _scan(self, redraw: Callable[[], None]) -> None:
        shown_at_s = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal shown_at_s
            if time.monotonic() - shown_at_s >= FRAME_S:
                shown_at_s = time.monotonic()
                self.done = done / total if total else 0.0
                redraw()

        self.scan_failed = True
        try:
            self.report = self.store.report(progress)
            self.scan_failed = False
        finally:
            self.due_at_s = time.monotonic() + (min(self.every_s, RETRY_S) if self.scan_failed else self.every_s)


def _watch(at: Options, every: str | None) -> int:
    every_ms = parse_duration_ms(every or DEFAULT_EVERY, "--every")
    if every_ms < LEAST_EVERY_MS:
        raise InvalidSettings(
            "--every is less than a second, and each scan is work for the server", remedy="write 1s or more"
        )
    if not at.as_json and not _can_be_drawn_on():
        raise InvalidSettings("--watch needs a terminal to show it on", remedy="add --json for a line a scan")
    with until_asked_to_stop() as signals, at.store() as store:
        live = LiveReport(store, every_ms / 1000)
        _print_lines(at, live, signals) if at.as_json else _draw(live, signals)
    return exits.DONE


def _can_be_drawn_on() -> bool:
    """Whether stdout is a terminal on which Rich moves the cursor: on others it would show nothing at all."""
    from rich.console import Console

    console = Console()
    return show.is_terminal(sys.stdout) and console.is_terminal and console.is_interactive and not console.is_dumb_terminal


def _print_lines(at: Options, live: LiveReport, signals: Signals) -> None:
    while True:
        signals.check()
        live.look(lambda: None)
        if live.trouble is not None:
            at.put_json({"error": live.trouble.message})
        elif live.report is not None:
            failures, window_ms = live.failures.lately()
            lately = {"window_ms": window_ms, "window_failures": failures}
            at.put_json(live.report.model_dump(mode="json") | lately)
        time.sleep(live.every_s)


def _draw(live: LiveReport, signals: Signals) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    screen = Live(
        console=console, auto_refresh=False, vertical_overflow="crop", redirect_stdout=False, redirect_stderr=False
    )

    def redraw() -> None:
        screen.update(_view(live), refresh=True)

    with screen:
        redraw()
        while True:
            signals.check()
            live.look(redraw)
            redraw()
            time.sleep(TICK_S)


def _view(live: LiveReport) -> "RenderableType":
    from rich.console import Group

    # The state comes first, so that it is not cut off on a low terminal.
    parts: list[Any] = [_state(live)]
    if live.report is not None:
        failures, window_ms = live.failures.lately()
        if window_ms:
            parts.append(show.cell(f"{count(failures, 'resume')} refused in the last {duration(window_ms)}"))
        for section in tables.report_sections(live.report, live.store.settings.namespace):
            parts += ["", section]
    return Group(*parts)


def _state(live: LiveReport) -> "RenderableType":
    now_s = time.monotonic()
    if live.trouble is not None:
        since = duration(round((now_s - live.trouble_since_s) * 1000))
        return show.cell(f"{live.trouble.message}, for {since}; what is shown may be old", "bold red")
    if live.done is not None or live.report is None:
        return show.cell(f"scanning {live.done or 0:.0%}", "dim")
    next_s = max(0, round(live.due_at_s - now_s))
    approximate = "; keys may have been missed" if live.report.approximate else ""
    return show.cell(f"next scan in {duration(next_s * 1000)}, Ctrl-C ends{approximate}", "dim")
