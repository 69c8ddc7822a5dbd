"""Rows and charts of the results, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.pairs import Contest

MIB: Final = 1024 * 1024
BAR_WIDTH: Final = 40


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, as text.

    Attributes:
        work: what is measured.
        ours: our figure.
        compared: the alternative and its figure.
        ratio: ours divided by the other.
        cpu_ratio: the same for processor time, client and server together.
        to_reach: the goal; "" for none.
        reached: whether the goal is reached; None for no goal.
    """

    work: str
    ours: str
    compared: str = ""
    ratio: str = ""
    cpu_ratio: str = ""
    to_reach: str = ""
    reached: bool | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """How something grows: bars, each with a label, a value and a text."""

    title: str
    bars: tuple[tuple[str, float, str], ...]

    def lines(self) -> list[str]:
        """The chart as plain text."""
        largest = max(value for _, value, _ in self.bars)
        label_width = max(len(label) for label, _, _ in self.bars)
        text_width = max(len(text) for _, _, text in self.bars)
        return [
            f"{label:>{label_width}}  {text:>{text_width}}  {'█' * max(1, round(value / largest * BAR_WIDTH))}"
            for label, value, text in self.bars
        ]


def timed(work: str, contest: Contest, ours: str, other: str, at_most: float | None = None) -> Row:
    """A row from a contest: how many times as long ours takes; the goal is `at_most` times."""
    ratio = contest.ratio(ours, other)
    return Row(
        work,
        seconds(contest.wall_s(ours)),
        f"{other}: {seconds(contest.wall_s(other))}",
        f"{ratio:.2f}",
        f"{contest.cpu_ratio(ours, other):.2f}",
        "" if at_most is None else f"≤ {at_most:.2f}",
        None if at_most is None else ratio <= at_most,
    )


def tail(work: str, slowest_s: Mapping[str, float], ours: str, other: str) -> Row:
    """A row of 99th percentiles."""
    compared = f"{other}: {seconds(slowest_s[other])}"
    return Row(work, seconds(slowest_s[ours]), compared, f"{slowest_s[ours] / slowest_s[other]:.2f}")


def limited(work: str, figure: float, text: str, limit: float, limit_text: str, *, compared: str = "") -> Row:
    """A row of a figure whose goal is to be at most `limit`."""
    return Row(work, text, compared, to_reach=f"≤ {limit_text}", reached=figure <= limit)


def seconds(value_s: float) -> str:
    """A time in a suitable unit."""
    if value_s < 0.001:
        return f"{value_s * 1e6:.0f} µs"
    if value_s < 0.1:
        return f"{value_s * 1e3:.1f} ms"
    return f"{value_s:.2f} s"


def mebibytes(size_bytes: float) -> str:
    """A size in MiB."""
    return f"{size_bytes / MIB:.0f} MiB"


def each_second(value_s: float) -> str:
    """How many things that take `value_s` each fit into a second."""
    return f"{1 / value_s:,.0f}/s"
