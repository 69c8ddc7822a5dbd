"""Import and export of a whole sessions.json by the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from redis_sessions.keys import Keys
from tests.benchmarks import bare
from tests.benchmarks.lab import NAMESPACE, Lab, redis_cli
from tests.benchmarks.rows import MIB, Row, limited, mebibytes, timed
from tests.benchmarks.scans import FLOOR

EXTRA_BYTES: Final = 100 * MIB
GROWTH: Final = 1.25


def import_(lab: Lab) -> Iterator[Row]:
    """Import records with times into an empty store."""
    count = lab.scale.sessions
    server = lab.server(name="import")
    records, commands = lab.directory / "sessions.json", lab.directory / "commands"
    write_records(records, commands, count)

    def empty() -> None:
        server.raw.delete(Keys(NAMESPACE).settings())  # which only an import of ours writes
        assert server.raw.dbsize() == count
        server.raw.flushall()

    program = redis_cli()
    if program is None:
        floor, piped = "its commands, packed by hand", lab.job(server, "packed", server.url, commands, then=empty)
    else:
        port = server.url.rpartition(":")[2].partition("/")[0]
        floor, piped = "redis-cli --pipe", lab.program(server, program, "-p", port, "--pipe", stdin=commands, then=empty)
    ours = lab.job(server, "command-line", "import", "--json", "--url", server.url, records, then=empty)
    contest = lab.contest("import", {"ours": ours, floor: piped}, lab.scale.long_rounds)
    work = f"import, {count:,} records"
    yield timed(work, contest, "ours", floor, 3.0)
    peak_bytes, file_bytes = contest.peak_bytes("ours"), records.stat().st_size
    limit_bytes = 3 * file_bytes + EXTRA_BYTES
    compared = f"the file: {mebibytes(file_bytes)}"
    yield limited(
        f"{work}: peak memory", peak_bytes, mebibytes(peak_bytes), limit_bytes, mebibytes(limit_bytes), compared=compared
    )


def write_records(records: Path, commands: Path, count: int) -> None:
    """Write a sessions.json, and a file of the packed commands that write the same to Redis."""
    keys = Keys(NAMESPACE)
    now_ms = time.time_ns() // 1_000_000
    rows = zip(range(count), bare.session_ids(), bare.ages_ms(), strict=False)
    with records.open("w") as json_file, commands.open("wb") as command_file:
        json_file.write("{")
        for number, session_id, age_ms in rows:
            key, used_at_ms = bare.conversation(number), now_ms - age_ms
            json_file.write(f'{"," if number else ""}\n  "{key}": {{"id": "{session_id}", "last_used_at": {used_at_ms}}}')
            until = b"%d" % (used_at_ms + bare.MAX_AGE_MS)
            command_file.write(bare.packed(b"SET", keys.session_id(key), session_id.encode(), b"PXAT", until, b"NX"))
        json_file.write("\n}\n")


def export(lab: Lab) -> Iterator[Row]:
    """Export all sessions to a file."""
    count = lab.scale.sessions
    target = lab.directory / "exported.json"
    small, whole = lab.server(sessions=count // 10), lab.server(sessions=count)
    sides = {
        "ours": lab.job(whole, "command-line", "export", "--url", whole.url, target),
        FLOOR: lab.job(whole, "floor", whole.url),
    }
    work = f"export, {count:,} sessions"
    contest = lab.contest("export", sides, lab.scale.long_rounds)
    yield timed(work, contest, "ours", FLOOR, 4.0)
    tenth = lab.contest(
        "export of a tenth", {"ours": lab.job(small, "command-line", "export", "--url", small.url, target)}, 1
    ).peak_bytes("ours")
    peak_bytes = contest.peak_bytes("ours")
    yield limited(
        f"{work}: peak memory",
        peak_bytes,
        mebibytes(peak_bytes),
        GROWTH * tenth,
        f"{GROWTH} × that of a tenth",
        compared=f"a tenth of them: {mebibytes(tenth)}",
    )
