"""How the cost of a scan and of an import grows with the number of sessions."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.lab import Lab
from tests.benchmarks.moves import write_records
from tests.benchmarks.rows import Chart, seconds


def growth(lab: Lab) -> Iterator[Chart]:
    """The time per session: bars of equal length mean that the cost grows in proportion to the store."""
    scans: list[tuple[str, float, str]] = []
    imports: list[tuple[str, float, str]] = []
    target = lab.server(name="import")
    records, commands = lab.directory / "growing.json", lab.directory / "growing-commands"
    for size in sorted({*lab.scale.sizes, lab.scale.sessions}):
        write_records(records, commands, size)
        full = lab.server(sessions=size)
        sides = {
            "report": lab.job(full, "report", full.url),
            "import": lab.job(
                target, "command-line", "import", "--json", "--url", target.url, records, then=target.raw.flushall
            ),
        }
        contest = lab.contest(f"{size:,} sessions", sides, lab.scale.long_rounds if size < 1_000_000 else 1)
        for bars, side in ((scans, "report"), (imports, "import")):
            wall_s = contest.wall_s(side)
            bars.append((f"{size:,} sessions", wall_s / size, f"{seconds(wall_s)}, {wall_s / size * 1e6:.1f} µs each"))
    yield Chart("report, by size of the store", tuple(scans))
    yield Chart("import with the start of its process, by size of the file", tuple(imports))
