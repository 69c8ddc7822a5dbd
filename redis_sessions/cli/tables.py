"""Tables of sessions, the report and the results of import and retime, written to stdout."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis_sessions.cli.output import UNKNOWN, cell, display, is_terminal, put, remark
from redis_sessions.operations.conversation import Place, Record
from redis_sessions.operations.text import count, duration, safe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from redis_sessions.legacy.transfer import ImportResult
    from redis_sessions.operations.report import Report
    from redis_sessions.operations.retime import RetimeResult
    from redis_sessions.operations.scan import LeaseRow, SessionRow

# So many rows determine the columns of a list. The rest is written line by line in the same columns, 50 times as fast.
ROWS_IN_TABLE: Final = 500
REJECTS_SHOWN: Final = 20
BAR_WIDTH: Final = 32
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_DRY: Final = "would be, this was a dry run"
GAP: Final = 2
_PLACE: Final = Place.__slots__
# Where a column of the place has less, it says nothing.
_LEAST_PLACE: Final = 16


class _Column(NamedTuple):
    """A column of a list: its head, and what it shows of a row; `optional` ones are left out where they don't fit."""

    head: str
    text: Callable[[Any], str]
    right: bool = False
    optional: bool = False


_SESSIONS: Final = (
    _Column("key", lambda row: safe(row.key)),
    _Column("session ID", lambda row: row.session_id),
    _Column("idle", lambda row: UNKNOWN if row.idle_ms is None else duration(row.idle_ms), right=True),
    _Column("expires in", lambda row: "never" if row.expires_in_ms is None else duration(row.expires_in_ms), right=True),
    _Column("agent", lambda row: safe((row.record and row.record.agent) or ""), optional=True),
    _Column("turns", lambda row: str((row.record and row.record.turns) or ""), right=True, optional=True),
    _Column("place", lambda row: _place(row.record), optional=True),
)
_LEASES: Final = (
    _Column("key", lambda row: safe(row.key)),
    _Column("host", lambda row: safe(row.worker[0] or UNKNOWN)),
    _Column("process", lambda row: str(row.worker[1] or UNKNOWN), right=True),
    _Column("lasts", lambda row: duration(row.remaining_ms), right=True),
)


def _place(record: Record | None) -> str:
    """Host and directory, as scp writes them."""
    if record is None or not (record.host or record.directory):
        return ""
    return safe(":".join(part for part in (record.host, record.directory) if part))


def show_sessions(rows: Iterable[SessionRow]) -> None:
    """Write sessions as they come: as a table at a terminal, else a line each, with tabs and times in milliseconds."""
    if is_terminal(sys.stdout):
        remark(count(_show_rows(_SESSIONS, rows), "live session"))
        return
    for row in rows:
        record = row.record or Record()
        known = (row.idle_ms, row.expires_in_ms, record.agent, record.turns or None, *(getattr(record, it) for it in _PLACE))
        _put_line(row.key, row.session_id, *known)


def show_leases(rows: Iterable[LeaseRow]) -> None:
    """Write leases as they come, in the same way."""
    if is_terminal(sys.stdout):
        remark(count(_show_rows(_LEASES, rows), "lease"))
        return
    for row in rows:
        _put_line(row.key, *row.worker, row.remaining_ms)


def _put_line(*values: str | int | None) -> None:
    put("\t".join(UNKNOWN if value is None else safe(str(value)) for value in values))


def _show_rows(columns: Sequence[_Column], rows: Iterable[Any]) -> int:
    """Write a table, row by row; how many there were. The first of two columns that fold is the first to give way."""
    rows = iter(rows)
    first = list(islice(rows, ROWS_IN_TABLE))
    if not first:
        return 0
    columns, widths = _fitting(columns, first)
    shown = table(
        *(
            {"header": column.head, "width": width, "overflow": "fold", "justify": "right" if column.right else "left"}
            for column, width in zip(columns, widths, strict=True)
        )
    )
    for row in first:
        shown.add_row(*(cell(column.text(row)) for column in columns))
    display(shown)
    from rich.cells import cell_len, chop_cells

    total = len(first)
    for row in rows:
        total += 1
        parts = [chop_cells(column.text(row), width) for column, width in zip(columns, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            pieces = []
            for column, width, text in zip(columns, widths, line, strict=True):
                padding = " " * (width - cell_len(text))
                pieces.append(padding + text if column.right else text + padding)
            put((" " * GAP).join(pieces).rstrip())
    return total


def _fitting(columns: Sequence[_Column], rows: Sequence[Any]) -> tuple[list[_Column], list[int]]:
    """The columns that fit the terminal, and their widths: as needed, or the first ones narrower if that is too much.

    The second gives way last, since a session ID gets copied.
    """
    needed = [max(len(column.head), *(cell(column.text(row)).cell_len for row in rows)) for column in columns]
    free = shutil.get_terminal_size().columns
    chosen: list[_Column] = []
    widths: list[int] = []
    must = sum(width + GAP for column, width in zip(columns, needed, strict=True) if not column.optional) - GAP
    for column, width in zip(columns, needed, strict=True):
        if column.optional:
            least = min(width, _LEAST_PLACE) if column.head == "place" else width
            if must + GAP + least > free or not any(column.text(row) for row in rows):
                continue
            widths.append(min(width, free - must - GAP))
            must += GAP + widths[-1]
        else:
            widths.append(width)
        chosen.append(column)
    if must > free:
        free -= sum(width + GAP for width in widths[2:]) + GAP
        widths[1] = max(1, min(widths[1], max(free * 2 // 3, free - widths[0])))
        widths[0] = max(1, min(widths[0], free - widths[1]))
    return chosen, widths


def report_sections(report: Report, namespace: str) -> list[RenderableType]:
    """What there is, how long it has been idle, the counters, and examples of what is invalid."""
    soonest = "" if report.soonest_expiry_ms is None else f"the next expires in {duration(report.soonest_expiry_ms)}"
    failures, resumes = (report.counters[name] for name in ("resume_failures_total", "resumes_total"))
    asked = 0 if failures is None or resumes is None else failures + resumes
    rate = f"{(failures or 0) / asked:.1%} of {count(asked, 'attempt')} to resume" if asked else ""
    return [
        _facts(
            f"Sessions in namespace {namespace}",
            ("live", report.live, soonest),
            ("without TTL", report.no_ttl, "will never expire"),
            ("over max age", report.over_max_age, "not known how long idle"),
            ("invalid", report.invalid, "not a session ID"),
        ),
        _section("Idle for", _histogram([(bucket.up_to_ms, bucket.count) for bucket in report.idle_histogram])),
        _facts(
            "Counted so far",
            ("resumes", resumes, ""),
            ("resume failures", failures, rate, True),
            ("fresh starts", report.counters["fresh_starts_total"], ""),
            ("given up", report.counters["gave_up_total"], "of the fresh starts: the session had failed too often"),
            ("rotated", report.counters["rotations_total"], "of the fresh starts: the session had reached a limit"),
        ),
        *_examples(
            f"Keys without braces, which no store reads: write {namespace}:id:{{…}}",
            [(key, "") for key in report.near_examples],
            report.near_scheme,
        ),
        *_examples("Invalid keys", [(it.key, it.reason) for it in report.invalid_examples], report.invalid),
    ]


def show_import(result: ImportResult, *, dry_run: bool) -> None:
    """Write the verdicts of an import, and the first rejects with their reasons."""
    rejects = [(reject.key, reject.reason) for reject in result.rejects[:REJECTS_SHOWN]]
    verdicts = _facts(
        "Entries",
        ("imported", result.imported, _DRY if dry_run else "", True),
        ("expired", result.expired, "unused for longer than the max age"),
        ("kept", result.kept, "live in Redis already, unchanged"),
        ("rejected", result.rejected, ""),
        ("total", result.total, ""),
    )
    units = [(unit, number, "") for unit, number in sorted(result.times.items())]
    times = [_facts("Times given in", *units)] if result.times.keys() - {"milliseconds"} else []
    display(verdicts, *times, *_examples("Rejected", rejects, result.rejected))


def show_retime(result: RetimeResult, max_age_ms: int, *, dry_run: bool) -> None:
    """Write what was done to the TTLs of all sessions."""
    lives = _facts(
        "Lives of sessions",
        ("shortened", result.shortened, _DRY if dry_run else ""),
        ("given a TTL", result.given_ttl, _DRY if dry_run else ""),
        ("left", result.left, f"live no longer than {duration(max_age_ms)}"),
        ("invalid", result.invalid, "no session IDs, not touched: see redis-sessions report"),
    )
    display(lives)


def _histogram(buckets: list[tuple[int, int]]) -> Table:
    histogram = table({"justify": "right"}, {"justify": "right"}, {"style": "cyan"}, heading=False)
    largest = max((number for _, number in buckets), default=0)
    lower_ms = 0
    for up_to_ms, number in buckets:
        label = f"{duration(lower_ms) if lower_ms else 0} to {duration(up_to_ms)}"
        histogram.add_row(label, f"{number:,}", _bar(number, largest), style="" if number else "dim")
        lower_ms = up_to_ms
    return histogram


def _bar(number: int, largest: int) -> str:
    if not number:
        return ""
    eighths = max(1, number * BAR_WIDTH * 8 // largest)
    try:
        "█▏".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _facts(title: str, *facts: tuple[str, int | None, str] | tuple[str, int | None, str, bool]) -> RenderableType:
    """A section of numbers, each with its name and an explanation, which a zero needs only if that is said."""
    rows = table({}, {"justify": "right", "style": "bold"}, {"style": "dim"}, heading=False)
    for name, number, explanation, *even_of_zero in facts:
        if number is None:
            rows.add_row(name, UNKNOWN, "not an integer: see redis-sessions doctor")
        else:
            rows.add_row(name, f"{number:,}", explanation if number or even_of_zero else "")
    return _section(title, rows)


def _examples(title: str, pairs: list[tuple[str, str]], total: int) -> list[RenderableType]:
    """A section of keys, each with the reason why it is there; none if there are none."""
    if not pairs:
        return []
    rows = table("key", "reason")
    for pair in pairs:
        rows.add_row(*map(cell, pair))
    return [_section(f"{title}: the first {len(pairs)} of {total:,}" if len(pairs) < total else title, rows)]


def _section(title: str, rows: Table) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    return Group(cell(title, "bold"), Padding(rows, (0, 0, 0, 2)))


def table(*columns: str | dict[str, Any], heading: bool = True) -> Table:
    """A table without lines, of columns given by the options of Rich's `add_column`, or by heads of columns that fold."""
    from rich.table import Table

    made = Table(box=None, show_header=heading, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
    for column in columns:
        made.add_column(**({"header": column, "overflow": "fold"} if isinstance(column, str) else column))
    return made
