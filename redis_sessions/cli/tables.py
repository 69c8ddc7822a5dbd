"""The tables: sessions, the report, the verdicts of an import. All take what the store returns and write to stdout."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from redis_sessions.cli.output import UNKNOWN, cell, display, is_terminal, put, remark
from redis_sessions.text import count, duration, safe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from redis_sessions.legacy.transfer import ImportResult
    from redis_sessions.operations.report import Report
    from redis_sessions.operations.retime import RetimeResult
    from redis_sessions.operations.scan import SessionRow

# Rows that shape a table. A longer list goes on in its columns line by line, which is 50 times as fast.
ROWS_IN_TABLE: Final = 500
REJECTS_SHOWN: Final = 20
BAR_WIDTH: Final = 32
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
GAP: Final = 2
IDLE_WIDTH: Final = 8
EXPIRES_WIDTH: Final = 10


def show_sessions(rows: Iterable[SessionRow]) -> None:
    """Sessions as they come, in a table at a terminal, else a line each with tabs and times in milliseconds."""
    if not is_terminal(sys.stdout):
        for row in rows:
            times = (UNKNOWN if time is None else str(time) for time in (row.idle_ms, row.expires_in_ms))
            put("\t".join((safe(row.key), row.session_id, *times)))
        return
    rest = iter(rows)
    first = [_cells(row) for row in islice(rest, ROWS_IN_TABLE)]
    total = len(first)
    if first:
        key_width, id_width = _widths(first)
        _show_table(first, key_width, id_width)
        for key, session_id, idle, expires in map(_cells, rest):
            total += 1
            padding = " " * (key_width - cell(key).cell_len)
            put(f"{key}{padding}  {session_id:<{id_width}}  {idle:>{IDLE_WIDTH}}  {expires:>{EXPIRES_WIDTH}}")
    remark(count(total, "live session"))


def _cells(row: SessionRow) -> tuple[str, str, str, str]:
    idle = UNKNOWN if row.idle_ms is None else duration(row.idle_ms)
    expires = "never" if row.expires_in_ms is None else duration(row.expires_in_ms)
    return safe(row.key), row.session_id, idle, expires


def _widths(rows: list[tuple[str, str, str, str]]) -> tuple[int, int]:
    """Columns for key and session ID: what they need, or what the terminal has, the ID first, as it gets copied."""
    free = shutil.get_terminal_size().columns - IDLE_WIDTH - EXPIRES_WIDTH - 3 * GAP
    key_width = max(len("key"), *(cell(key).cell_len for key, *_ in rows))
    id_width = max(len("session ID"), *(len(session_id) for _, session_id, *_ in rows))
    id_width = min(id_width, max(free * 2 // 3, free - key_width))
    return min(key_width, max(free - id_width, 1)), max(id_width, 1)


def _show_table(rows: list[tuple[str, str, str, str]], key_width: int, id_width: int) -> None:
    table = _table(heading=True)
    table.add_column("key", width=key_width, overflow="fold")
    table.add_column("session ID", width=id_width, overflow="fold")
    table.add_column("idle", width=IDLE_WIDTH, justify="right")
    table.add_column("expires in", width=EXPIRES_WIDTH, justify="right")
    for row in rows:
        table.add_row(*map(cell, row))
    display(table)


def show_report(report: Report, namespace: str) -> None:
    """The report: what there is, how long it has been idle, the counters, and examples of what is not right."""
    display(*report_sections(report, namespace))


def report_sections(report: Report, namespace: str) -> list[RenderableType]:
    """The parts of `show_report`."""
    soonest_ms = report.soonest_expiry_ms
    sessions = _facts(
        ("live", report.live, "" if soonest_ms is None else f"the next expires in {duration(soonest_ms)}"),
        ("without TTL", report.no_ttl, "will never expire" if report.no_ttl else ""),
        ("over max age", report.over_max_age, "not known how long idle" if report.over_max_age else ""),
        ("invalid", report.invalid, "hold no session ID" if report.invalid else ""),
    )
    sections = [
        _section(f"Sessions in namespace {namespace}", sessions),
        _section("Idle for", _histogram([(bucket.up_to_ms, bucket.count) for bucket in report.idle_histogram])),
        _section("Counted so far", _counters(report.counters)),
    ]
    if examples := report.invalid_examples:
        title = _first_of("Invalid keys", len(examples), report.invalid)
        sections.append(_section(title, _pairs((example.key, example.reason) for example in examples)))
    return sections


def show_import(result: ImportResult, *, dry_run: bool) -> None:
    """The verdicts of an import, and the first rejects with their reasons."""
    verdicts = _facts(
        ("imported", result.imported, "would be, this was a dry run" if dry_run else ""),
        ("expired", result.expired, "unused for longer than the max age" if result.expired else ""),
        ("kept", result.kept, "live in Redis already, left as they are" if result.kept else ""),
        ("rejected", result.rejected, ""),
        ("total", result.total, ""),
    )
    sections = [_section("Entries", verdicts)]
    if shown := result.rejects[:REJECTS_SHOWN]:
        title = _first_of("Rejected", len(shown), result.rejected)
        sections.append(_section(title, _pairs((reject.key, reject.reason) for reject in shown)))
    display(*sections)


def show_retime(result: RetimeResult, max_age_ms: int, *, dry_run: bool) -> None:
    """What became of the lives of all sessions."""
    would = "would be, this was a dry run" if dry_run else ""
    lives = _facts(
        ("shortened", result.shortened, would if result.shortened else ""),
        ("given a TTL", result.given_ttl, would if result.given_ttl else ""),
        ("left", result.left, f"live no longer than {duration(max_age_ms)}" if result.left else ""),
        ("invalid", result.invalid, "no session IDs, not touched: see redis-sessions report" if result.invalid else ""),
    )
    display(_section("Lives of sessions", lives))


def _counters(counters: dict[str, int | None]) -> Table:
    failures, resumes = counters["resume_failures_total"], counters["resumes_total"]
    asked = 0 if failures is None or resumes is None else failures + resumes
    rate = f"{(failures or 0) / asked:.1%} of {count(asked, 'attempt')} to resume" if asked else ""
    return _facts(
        ("resumes", resumes, ""),
        ("resume failures", failures, rate),
        ("fresh starts", counters["fresh_starts_total"], ""),
    )


def _histogram(buckets: list[tuple[int, int]]) -> Table:
    table = _table(heading=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="cyan")
    largest = max((number for _, number in buckets), default=0)
    lower_ms = 0
    for up_to_ms, number in buckets:
        label = f"{duration(lower_ms) if lower_ms else 0} to {duration(up_to_ms)}"
        table.add_row(label, f"{number:,}", _bar(number, largest), style="" if number else "dim")
        lower_ms = up_to_ms
    return table


def _bar(number: int, largest: int) -> str:
    if not number:
        return ""
    eighths = max(1, number * BAR_WIDTH * 8 // largest)
    try:
        "█▏".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _facts(*facts: tuple[str, int | None, str]) -> Table:
    table = _table(heading=False)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    for name, number, explanation in facts:
        if number is None:
            table.add_row(name, UNKNOWN, "no integer: see redis-sessions doctor")
        else:
            table.add_row(name, f"{number:,}", explanation)
    return table


def _pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    table = _table(heading=True)
    table.add_column("key", overflow="fold")
    table.add_column("reason", overflow="fold")
    for key, reason in pairs:
        table.add_row(cell(key), cell(reason))
    return table


def _first_of(title: str, shown: int, total: int) -> str:
    return f"{title}: the first {shown} of {total:,}" if shown < total else title


def _section(title: str, table: Table) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    return Group(cell(title, "bold"), Padding(table, (0, 0, 0, 2)))


def _table(*, heading: bool) -> Table:
    from rich.table import Table

    return Table(box=None, show_header=heading, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
