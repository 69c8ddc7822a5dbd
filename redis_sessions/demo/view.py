"""What a person sees of the demo: time lines while it runs, a sentence and a table at its end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redis_sessions.demo.plan import NEVER_MS
from redis_sessions.demo.results import WAYS, Course, DemoFigures
from redis_sessions.operations.text import count, safe

# Assumed, not measured: how long a real agent takes to start and to find its session gone.
START_S: Final = 3
_PLAIN_STEPS: Final = 4
_OTHER_LINES: Final = 9

# The sign of a turn, in ASCII, its style, and what it means.
_SIGNS: Final = {
    "fresh": ("○", "o", "bright_blue", "fresh"),
    "resumed": ("●", "#", "green", "resumed"),
    "waited": ("◆", "W", "yellow", "after a wait"),
    "restarted": ("✗", "x", "bold red", "refused, then fresh"),
    "failed": ("!", "!", "bold red reverse", ""),
}


class LiveView:
    """Progress on stderr while the block runs: time lines at a terminal, elsewhere a plain line per quarter of a run."""

    def __init__(self, workers: int, turns: int) -> None:
        self._title = f"{count(workers, 'worker')}, {count(turns, 'turn')}, run twice: without expiry, and with it"
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
        self.say(self._title)
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
            self._live.update(Group(self._time_lines(), Text(), self._legend(), Text()), refresh=True)
        elif (step := len(course.marks) * _PLAIN_STEPS // course.turns) > self._steps:
            self._steps = step
            ways = ", ".join(f"{course.counts[way]} {way}" for way in WAYS if course.counts[way])
            done = f"{len(course.marks)} of {course.turns} turns"
            self.say(f"{name}: {done}: {ways}; {course.counts['waited']} waited for a lease")

    def _time_lines(self) -> RenderableType:
        keys = self._runs[0][1].keys
        name_width = min(max(len(_short(key)) for key in keys), self._console.width // 3)
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
            table.add_row(Text(_short(key)), *(strip[key] for strip in strips))
        if len(shown) < len(keys):
            table.add_row(Text(f"and {len(keys) - len(shown)} more", "dim"))
        table.add_row(Text("turns", "dim"), *map(self._in_short, courses))
        return table

    def _in_short(self, course: Course) -> Text:
        done = (f"{len(course.marks)}/{course.turns}", "bold")
        parts = [self._sign(way, f" {course.counts[way]}") for way in WAYS if course.counts[way]]
        return Text.assemble(done, *parts, no_wrap=True, overflow="ellipsis")

    def _strips(self, course: Course, width: int) -> dict[str, Text]:
        strips: dict[str, list[tuple[str, str]]] = {key: [(" ", "")] * width for key in course.keys}
        # On a slow machine the scale changes rather than the end being cut off.
        length_ms = max([course.length_ms, *(mark.at_ms for mark in course.marks)]) + 1
        for mark in course.marks:
            strip = strips[mark.key]
            at = mark.at_ms * (width - 1) // length_ms
            while at < width - 1 and strip[at][0] != " ":
                at += 1
            strip[at] = self._sign(mark.sign)
        return {key: Text.assemble(*strip) for key, strip in strips.items()}

    def _sign(self, name: str, before: str = "") -> tuple[str, str]:
        glyph, in_ascii, style, _ = _SIGNS[name]
        return before + (in_ascii if self._console.options.ascii_only else glyph), style

    def _legend(self) -> Text:
        pairs = [(self._sign(name), (f" {meaning}  ", "dim")) for name, (*_, meaning) in _SIGNS.items() if meaning]
        return Text.assemble(*(part for pair in pairs for part in pair))


def show(figures: DemoFigures) -> None:
    """Print to stdout what expiry saved, then both runs side by side."""
    console = Console(highlight=False, markup=False, emoji=False)
    runs = (figures.without_expiry, figures.with_expiry)
    # Elsewhere than at a terminal a sentence stays on one line, for grep and for logs.
    on_one_line = not console.is_terminal
    console.print(Text(_headline(figures), "bold"), soft_wrap=on_one_line)
    console.print()
    table = _table()
    table.add_column(f"{count(figures.turns, 'turn')}, {count(figures.workers, 'worker')}", header_style="dim")
    for name in ("without expiry", "with expiry"):
        table.add_column(name, justify="right")
    table.add_row("Redis keeps an unused ID", *(_seconds(run["session_max_age_ms"]) for run in runs))
    for name, field in (("resumed", "resumed"), ("started fresh", "fresh"), ("refused, then fresh", "restarted")):
        table.add_row(name, *(str(run[field]) for run in runs), style="bold" if field == "restarted" else "")
    if not figures.all_ran_once:
        for field in ("failed", "double_runs"):
            table.add_row(field.replace("_", " "), *(str(run[field]) for run in runs), style="bold red")
    console.print(table)
    console.print()
    waited = sum(run["waited"] for run in runs)
    once = f" No conversation ran twice at once; {count(waited, 'turn')} waited for that." if figures.all_ran_once else ""
    keeps = (
        f"This agent forgets a session that is unused for {_seconds(figures.agent_keeps_ms)}; Redis keeps its ID for less."
    )
    console.print(Text(keeps + once, "dim"), soft_wrap=on_one_line)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _short(key: str) -> str:
    """A conversation's name without its organization, which is the same for all."""
    return key.rpartition("/")[2]


def _seconds(milliseconds: int) -> str:
    return "forever" if milliseconds >= NEVER_MS else f"{milliseconds / 1000:g} s"


def _headline(figures: DemoFigures) -> str:
    without, expiring = figures.without_expiry["restarted"], figures.with_expiry["restarted"]
    asked = f"{without or 'none'} of {count(figures.turns, 'turn')} first asked for a session that was gone"
    asked = f"without expiry, {asked}; with it, {expiring or 'none'}"
    if without > expiring:
        return f"At {START_S} s a start, {(without - expiring) * START_S} s of waiting saved: {asked}."
    return f"Nothing was saved in this run: {asked}. Try more --turns."
