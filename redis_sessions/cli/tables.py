"""Tables of sessions, the report and the results of import and retime, written to stdout."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Final

from redis_sessions.cli.output import UNKNOWN, cell, display, is_terminal, put, remark
from redis_sessions.text import count, duration, safe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from redis_sessions.legacy.transfer import ImportResult
    from redis_sessions.operations.report import Report
    from redis_sessions.operations.retime import RetimeResult
    from redis_sessions.operations.scan import SessionRow

# So many rows determine the columns of a list. The rest is written line by line in the same columns, 50 times as fast.
ROWS_IN_TABLE: Final = 500
REJECTS_SHOWN: Final = 20
BAR_WIDTH: Final = 32
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_DRY: Final = "would be, this was a dry run"
GAP: Final = 2
IDLE_WIDTH: Final = 8
EXPIRES_WIDTH: Final = 10


def show_sessions(rows: Iterable[SessionRow]) -> None:
    """Write sessions as they come: as a table at a terminal, else a line each, with tabs and times in milliseconds."""
    if not is_terminal(sys.stdout):
        for row in rows:
            times = (UNKNOWN if time is None else str(time) for time in (row.idle_ms, row.expires_in_ms))
            put("\t".join((safe(row.key), row.session_id, *times)))
        return
    cells = map(_cells, rows)
    first = list(islice(cells, ROWS_IN_TABLE))
    total = len(first)
    if first:
        key_width, id_width = _widths(first)
        sessions = table(
            {"header": "key", "width": key_width, "overflow": "fold"},
            {"header": "session ID", "width": id_width, "overflow": "fold"},
            {"header": "idle", "width": IDLE_WIDTH, "justify": "right"},
            {"header": "expires in", "width": EXPIRES_WIDTH, "justify": "right"},
        )
        for row_cells in first:
            sessions.add_row(*map(cell, row_cells))
        display(sessions)
        from rich.cells import cell_len, chop_cells

        for key, session_id, idle, expires in cells:
            total += 1
            lasts = f"{idle:>{IDLE_WIDTH}}  {expires:>{EXPIRES_WIDTH}}"
            for key_part, id_part in zip_longest(chop_cells(key, key_width), chop_cells(session_id, id_width), fillvalue=""):
                padding = " " * (key_width - cell_len(key_part))
                put(f"{key_part}{padding}  {id_part:<{id_width}}  {lasts}".rstrip())
                lasts = ""
    remark(count(total, "live session"))


def _cells(row: SessionRow) -> tuple[str, str, str, str]:
    idle = UNKNOWN if row.idle_ms is None else duration(row.idle_ms)
    expires = "never" if row.expires_in_ms is None else duration(row.expires_in_ms)
    return safe(row.key), row.session_id, idle, expires


def _widths(rows: list[tuple[str, str, str, str]]) -> tuple[int, int]:
    """Widths for key and session ID: as needed, or as the terminal allows, where the ID goes first since it gets copied."""
    free = shutil.get_terminal_size().columns - IDLE_WIDTH - EXPIRES_WIDTH - 3 * GAP
    key_width = max(len("key"), *(cell(key).cell_len for key, *_ in rows))
    id_width = max(len("session ID"), *(len(session_id) for _, session_id, *_ in rows))
    id_width = min(id_width, max(free * 2 // 3, free - key_width))
    return min(key_width, max(free - id_width, 1)), max(id_width, 1)


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
