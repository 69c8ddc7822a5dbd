"""What a person sees of the demo: time lines while it runs, a sentence and a table at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redis_sessions.demo.plan import AGENT_KEEPS_MS, MAX_AGE_MS
from redis_sessions.demo.results import WAYS, Course, DemoFigures
from redis_sessions.text import count, duration, safe

# Assumed, not measured: how long a real agent takes to start and to find its session gone.
START_S: Final = 3
_PLAIN_STEPS: Final = 4
_OTHER_LINES: Final = 8


class _Sign(NamedTuple):
    glyph: str
    ascii: str
    style: str
    meaning: str = ""


_SIGNS: Final = {
    "fresh": _Sign("○", "o", "bright_blue", "fresh"),
    "resumed": _Sign("●", "#", "green", "resumed"),
    "waited": _Sign("◆", "W", "yellow", "resumed after waiting"),
    "restarted": _Sign("✗", "x", "bold red", "refused, then fresh"),
    "failed": _Sign("!", "!", "bold red reverse"),
    "runs": _Sign("·", ".", "bold"),
    "waits": _Sign("…", ":", "yellow"),
}


# What the table at the end shows of each run.
_ROWS: Final = {
    "Redis keeps an unused ID": "session_max_age_ms",
    "resumed": "resumed",
    "started fresh": "fresh",
    "resume refused, then fresh": "restarted",
    "time the refusals took": "wasted_ms",
    "failed": "failed",
    "waited for another worker": "waited_for_lease",
    "double runs": "double_runs",
}


class LiveView:
    """Progress on stderr while the block runs: time lines at a terminal, elsewhere a plain line per quarter of a run."""

    def __init__(self, workers: int, turns: int) -> None:
        self._title = f"{count(workers, 'worker')}, {count(turns, 'turn')}, run twice"
        self._runs: list[tuple[str, Course]] = []
        self._steps = 0
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        at_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        # No auto refresh: a thread would draw a course while it changes.
        live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live = live if at_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self.say(f"{self._title}. The agent forgets a session after {duration(AGENT_KEEPS_MS)}.")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above what is drawn."""
        if self._live is not None:
            self._console.print(Text(safe(text)))
        elif sys.stderr is not None:
            with suppress(OSError):  # nobody reads it any more; the figures still go to stdout
                sys.stderr.write(f"{safe(text)}\n")
                sys.stderr.flush()

    def follow(self, name: str, course: Course) -> None:
        """Turn to the next run."""
        self._runs.append((f"{len(self._runs) + 1}. {name}", course))
        self._steps = 0
        self.update()

    def update(self) -> None:
        """Show how far the run is."""
        name, course = self._runs[-1]
        if self._live is not None:
            self._live.update(Group(self._time_lines(), Text(), self._legend()), refresh=True)
        elif (step := course.ways.total() * _PLAIN_STEPS // course.turns) > self._steps:
            self._steps = step
            ways = ", ".join(f"{course.ways[way]} {way}" for way in WAYS if course.ways[way])
            self.say(f"{name}: {course.ways.total()} of {course.turns} turns: {ways}; {course.waited} waited for a lease")

    def _time_lines(self) -> RenderableType:
        keys = self._runs[0][1].keys
        name_width = min(max(map(len, keys)), self._console.width // 3)
        rows = max(1, self._console.height - _OTHER_LINES)
        shown = keys if len(keys) <= rows else keys[: rows - 1]
        width = max(10, (self._console.width - name_width - 5) // 2)
        table = _table()
        table.add_column("conversation", width=name_width, no_wrap=True, header_style="dim")
        for name, _ in self._runs:
            table.add_column(name, width=width, no_wrap=True)
        courses = [course for _, course in self._runs]
        strips = [self._strips(course, width) for course in courses]
        for key in shown:
            table.add_row(Text(key), *(strip[key] for strip in strips))
        if len(shown) < len(keys):
            table.add_row(Text(f"and {len(keys) - len(shown)} more", "dim"))
        table.add_row(Text("turns", "dim"), *map(self._in_short, courses))
        return table

    def _in_short(self, course: Course) -> Text:
        done = (f"{course.ways.total()}/{course.turns}", "bold")
        parts = [self._sign(_SIGNS[way], f" {course.ways[way]}") for way in WAYS if course.ways[way]]
        return Text.assemble(done, *parts, no_wrap=True, overflow="ellipsis")

    def _strips(self, course: Course, width: int) -> dict[str, Text]:
        strips = {key: [_Sign(" ", " ", "")] * width for key in course.keys}
        # On a slow machine the scale changes rather than the end being cut off.
        length_ms = max(course.length_ms, course.duration_ms) + 1
        for mark in course.marks:
            strip = strips[mark.key]
            at = mark.at_ms * (width - 1) // length_ms
            while at < width - 1 and strip[at].glyph != " ":
                at += 1
            strip[at] = _SIGNS[mark.sign]
        return {key: Text.assemble(*map(self._sign, strip)) for key, strip in strips.items()}

    def _sign(self, sign: _Sign, before: str = "") -> tuple[str, str]:
        return before + (sign.ascii if self._console.options.ascii_only else sign.glyph), sign.style

    def _legend(self) -> Text:
        pairs = [(self._sign(sign), (f" {sign.meaning}  ", "dim")) for sign in _SIGNS.values() if sign.meaning]
        return Text.assemble(*(part for pair in pairs for part in pair))


def show(figures: DemoFigures) -> None:
    """Print to stdout what native expiry saved, then both runs side by side."""
    console = Console(highlight=False, markup=False, emoji=False)
    runs = (figures.without_expiry, figures.with_expiry)
    table = _table()
    table.add_column(f"{count(figures.turns, 'turn')}, {count(figures.workers, 'worker')}", header_style="dim")
    for name in ("without expiry", "with expiry"):
        table.add_column(name, justify="right")
    table.add_row("agent keeps an unused session", *[duration(figures.agent_keeps_ms)] * len(runs))
    for name, field in _ROWS.items():
        values = [getattr(run, field) for run in runs]
        if any(values) or field != "failed":
            shown = map(duration if field.endswith("_ms") else str, values)
            table.add_row(name, *shown, style="bold" if field == "restarted" else "")
    # Elsewhere than at a terminal a sentence stays on one line, for grep and for logs.
    fold = console.is_terminal
    console.print(Text(_headline(figures), "bold"), soft_wrap=not fold)
    console.print()
    console.print(table)
    console.print()
    for text in _notes(figures):
        console.print(Text(safe(text), "dim"), soft_wrap=not fold)
    for run in runs:
        for failure in run.failures:
            console.print(Text(safe(f"failed: {failure}"), "red"), soft_wrap=not fold)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _headline(figures: DemoFigures) -> str:
    without, expiring = figures.without_expiry.wasted_resumes, figures.with_expiry.wasted_resumes
    if not (without or expiring):
        return "No turn tried to resume a session that was gone, so this run shows no saving: try more --turns."
    tried = (
        f"Without expiry, {without} of {count(figures.turns, 'turn')} first tried to resume a session that was gone; "
        f"with it, {expiring or 'none'}"
    )
    if without > expiring:
        return f"{tried}: at {START_S} s a start, {(without - expiring) * START_S} s of waiting saved."
    return f"{tried}: nothing was saved in this run. Try more --turns."


def _notes(figures: DemoFigures) -> Iterator[str]:
    without, expiring = figures.without_expiry, figures.with_expiry
    if without.wasted_resumes:
        each = duration(without.wasted_ms // without.wasted_resumes)
        yield f"All of this was counted in this run, except the {START_S} s: the stand-in agent here took {each} to refuse."
    result, again = figures.imported.result, figures.imported.again
    yield (
        f"It also imported a sessions.json of {result.total} entries: {result.imported} live, {result.expired} expired, "
        f"{result.rejected} rejected; a second import: {again.imported} new, {again.kept} kept."
    )
    if (late_ms := max(without.late_ms, expiring.late_ms)) > MAX_AGE_MS // 2:
        yield f"This machine was busy: turns began up to {duration(late_ms)} late, so other figures may differ, too."
