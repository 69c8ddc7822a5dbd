"""What a person sees of the demo: time lines while it runs, tables at its end. Plain lines where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from redis_sessions.cli.output import UNKNOWN, cell, complain, display, is_terminal
from redis_sessions.demo.results import Course, DemoFigures, Imported, RunFigures, Tally
from redis_sessions.operations.report import Report
from redis_sessions.text import duration

WITHOUT: Final = "without expiry"
WITH: Final = "with expiry"

_WAYS: Final = ("resumed", "fresh", "restarted", "failed")
_WORKERS_SHOWN: Final = 8
_PLAIN_STEPS: Final = 4
_OTHER_LINES: Final = 9


class _Sign(NamedTuple):
    glyph: str
    ascii: str
    style: str
    meaning: str


_SIGNS: Final = {
    "fresh": _Sign("○", "o", "bright_blue", "fresh"),
    "resumed": _Sign("●", "#", "green", "resumed"),
    "waited": _Sign("◆", "W", "yellow", "resumed after waiting"),
    "restarted": _Sign("✗", "x", "bold red", "resume wasted, then fresh"),
    "failed": _Sign("!", "!", "bold red reverse", "failed"),
    "runs": _Sign("·", ".", "bold", ""),
    "waits": _Sign("…", ":", "yellow", ""),
}


class Watch(Protocol):
    """Follows the runs."""

    def say(self, text: str) -> None:
        """Tell what happens now."""

    def follow(self, name: str, course: Course) -> None:
        """Turn to another run."""

    def update(self) -> None:
        """Show how far the run has come."""


@contextmanager
def watch() -> Iterator[Watch]:
    """Time lines on stderr while the block runs if that is a terminal, else plain lines."""
    if not is_terminal(sys.stderr):
        yield _Lines()
        return
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    # Drawn when we say so: a thread of its own would draw a course that changes meanwhile.
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield _Screen(console, live)


class _Lines:
    def say(self, text: str) -> None:
        complain(text)

    def follow(self, name: str, course: Course) -> None:
        self._name = name
        self._course = course
        self._steps = 0

    def update(self) -> None:
        total, turns = self._course.total, self._course.turns
        if (step := total.done * _PLAIN_STEPS // turns) > self._steps:
            self._steps = step
            ways = ", ".join(f"{total.ways[way]} {way}" for way in _WAYS if total.ways[way])
            complain(f"{self._name}: {total.done} of {turns} dispatches: {ways}, {total.waited} waited for a lease")


class _Screen:
    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live
        self._runs: list[tuple[str, Course]] = []
        self._said = ""

    def say(self, text: str) -> None:
        self._said = text
        self.update()

    def follow(self, name: str, course: Course) -> None:
        self._runs.append((name, course))
        self.update()

    def update(self) -> None:
        parts: list[RenderableType] = [cell(self._said, "bold")]
        if self._runs:
            parts += [Text(), self._time_lines(), self._legend(), Text(), self._workers(self._runs[-1][1])]
        self._live.update(Group(*parts), refresh=True)

    def _time_lines(self) -> Table:
        keys = self._runs[0][1].keys
        name_width = min(30, max(map(len, keys)))
        room = self._console.height - _OTHER_LINES - min(_WORKERS_SHOWN, len(self._runs[0][1].workers)) - len(self._runs)
        shown = keys if len(keys) <= room else keys[: max(0, room - 1)]
        width = max(10, (self._console.width - name_width - 5) // 2)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("conversation", width=name_width, no_wrap=True, header_style="dim")
        for number, (name, _) in enumerate(self._runs, 1):
            table.add_column(f"{number}/2 {name}", width=width, no_wrap=True)
        courses = [course for _, course in self._runs]
        strips = [self._strips(course, width) for course in courses]
        for key in shown:
            table.add_row(cell(key), *(strip[key] for strip in strips))
        if len(shown) < len(keys):
            table.add_row(cell(f"and {len(keys) - len(shown)} more", "dim"))
        table.add_row(
            cell("dispatches", "dim"),
            *(ProgressBar(course.turns, course.total.done, width - 8, complete_style="cyan") for course in courses),
        )
        table.add_row("", *(self._in_short(course) for course in courses))
        return table

    def _in_short(self, course: Course) -> Text:
        total = course.total
        signs = [(total.ways[way], _SIGNS[way]) for way in _WAYS if total.ways[way]]
        parts = [(f"  {count} {self._glyph(sign)}", sign.style) for count, sign in signs]
        return Text.assemble((f"{total.done}/{course.turns}", "bold"), *parts, no_wrap=True, overflow="ellipsis")

    def _strips(self, course: Course, width: int) -> dict[str, Text]:
        strips = {key: [_Sign(" ", " ", "", "")] * width for key in course.keys}
        # A late machine stretches the line rather than lose its end.
        length_ms = max(course.length_ms, course.duration_ms) + 1
        for mark in course.marks:
            strip = strips[mark.key]
            at = mark.at_ms * (width - 1) // length_ms
            while at < width - 1 and strip[at].glyph != " ":
                at += 1
            strip[at] = _SIGNS[mark.sign]
        return {key: Text.assemble(*((self._glyph(sign), sign.style) for sign in strip)) for key, strip in strips.items()}

    def _glyph(self, sign: _Sign) -> str:
        return sign.ascii if self._console.options.ascii_only else sign.glyph

    def _legend(self) -> Text:
        signs = [_SIGNS[name] for name in ("fresh", "resumed", "waited", "restarted")]
        pairs = [((self._glyph(sign), sign.style), (f" {sign.meaning}  ", "dim")) for sign in signs]
        return Text.assemble(*(part for pair in pairs for part in pair), no_wrap=True, overflow="ellipsis")

    def _workers(self, course: Course) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("worker", justify="right")
        for heading in ("done", "resumed", "fresh", "restarted", "waited"):
            table.add_column(heading, justify="right")
        table.add_column("now", no_wrap=True, overflow="ellipsis")
        for number, worker in enumerate(course.workers[:_WORKERS_SHOWN], 1):
            style = "yellow" if worker.waits else ""
            table.add_row(str(number), *map(str, _counts(worker)), cell(worker.now, style))
        return table


def _counts(tally: Tally) -> list[int]:
    return [tally.done, tally.ways["resumed"], tally.ways["fresh"], tally.ways["restarted"], tally.waited]


def show_imported(imported: Imported) -> None:
    """The verdicts of the import, entry by entry, and that a second import changes nothing."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    for heading in ("entry of sessions.json", "last used", "verdict"):
        table.add_column(heading, overflow="fold")
    styles = {"imported": "green", "expired": "yellow"}
    for entry in imported.entries:
        age = "not told" if entry.idle_ms is None else f"{duration(entry.idle_ms)} ago"
        verdict = entry.verdict if entry.verdict in styles else f"rejected: {entry.verdict}"
        table.add_row(cell(entry.key), age, cell(verdict, styles.get(entry.verdict, "red")))
    result, again = imported.result, imported.again
    counts = f"{result.imported} imported, {result.expired} expired, {result.rejected} rejected of {result.total} entries"
    more = f"a second import: {again.imported} imported, {again.kept} kept as they are"
    display(Group(table, cell(f"{counts}; {more}", "dim"), Text()))


def show_reports(figures: DemoFigures) -> None:
    """What the store reports of each namespace: live sessions, how long they are idle, the counters."""
    reports = (figures.imported.report, figures.without_expiry.report, figures.with_expiry.report)
    table = _table("report", ("imported", WITHOUT, WITH))
    table.add_row("live", *(str(report.live) for report in reports))
    table.add_row("next expiry", *(_soonest(report) for report in reports))
    counts = [{bucket.up_to_ms: bucket.count for bucket in report.idle_histogram if bucket.count} for report in reports]
    for up_to_ms in sorted(set().union(*counts)):
        table.add_row(f"idle up to {_seconds(up_to_ms)}", *(_bar(count.get(up_to_ms, 0)) for count in counts))
    for name in figures.imported.report.counters:
        table.add_row(name, *(str(report.counters[name]) for report in reports))
    display(Group(table, Text()))


def _soonest(report: Report) -> str:
    return UNKNOWN if report.soonest_expiry_ms is None else f"in {_seconds(report.soonest_expiry_ms)}"


def _bar(count: int) -> Text:
    try:
        "▪".encode(getattr(sys.stdout, "encoding", None) or "ascii")
        glyph = "▪"
    except UnicodeEncodeError:
        glyph = "*"
    return Text.assemble((glyph * min(count, 20), "cyan"), f" {count}") if count else Text()


def show_comparison(figures: DemoFigures) -> None:
    """Both runs side by side, and in words what the difference is."""
    runs = (figures.without_expiry, figures.with_expiry)
    table = _table(f"{figures.turns} dispatches, {figures.workers} workers", (WITHOUT, WITH))
    wasted = "wasted resume attempts"
    for name, values in _rows(runs):
        style = "bold" if name == wasted else ""
        table.add_row(cell(name, style), *(cell(value, style) for value in values))
    display(Group(table, Text(), cell(_in_words(figures))))


def _table(heading: str, columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column(heading, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _rows(runs: tuple[RunFigures, RunFigures]) -> Iterator[tuple[str, list[str]]]:
    yield "an unused ID is kept for", [_seconds(run.session_max_age_ms) for run in runs]
    yield "dispatches", [str(run.dispatches) for run in runs]
    yield "resumed", [str(run.resumed) for run in runs]
    yield "fresh", [str(run.fresh) for run in runs]
    yield "fresh after a refused resume", [str(run.restarted) for run in runs]
    if any(run.failed for run in runs):
        yield "failed", [str(run.failed) for run in runs]
    yield "wasted resume attempts", [str(run.wasted_resumes) for run in runs]
    yield "time those took", [f"{run.wasted_ms}ms" for run in runs]
    yield "agent processes started", [str(run.agent_starts) for run in runs]
    yield "waited for another worker's lease", [str(run.waited_for_lease) for run in runs]
    yield "ran twice at once", [str(run.double_runs) for run in runs]
    yield "IDs live at the end, of them dead", [f"{run.live_ids}, {run.live_ids_gone}" for run in runs]


def _in_words(figures: DemoFigures) -> str:
    without, expiring = figures.without_expiry, figures.with_expiry
    text = (
        f"The agent forgets a session after {_seconds(figures.agent_keeps_ms)}. A map that never forgets let "
        f"{without.wasted_resumes} of {without.dispatches} dispatches try a dead one first; native expiry after the same "
        f"time, {expiring.wasted_resumes or 'none'}."
    )
    if expiring.wasted_resumes:
        text += (
            " These came in the moment between the agent's last use of a session and the save in Redis, when the agent had "
            "just forgotten: a max age a little below the agent's own leaves none."
        )
    worst_ms = max(without.late_ms, expiring.late_ms)
    if worst_ms > figures.agent_keeps_ms // 2:
        text += f" This machine was busy: dispatches began up to {worst_ms}ms late, so the figures of both runs may differ."
    return text


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g}s" if milliseconds < 60_000 else duration(milliseconds)
