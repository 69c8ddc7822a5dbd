"""`python -m tests.benchmarks [NAME…] [--quick] [--markdown FILE]`: see the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.benchmarks import __doc__ as purpose
from tests.benchmarks import bookkeeping, calls, growth, machine, memory, moves, scans, start, table, turns, workers
from tests.benchmarks.lab import QUICK, Lab, Scale
from tests.benchmarks.rows import Chart, Row

BENCHMARKS: dict[str, Callable[[Lab], Iterable[Row | Chart]]] = {
    "get": calls.get,
    "set": calls.set_,
    "dispatch": turns.dispatch,
    "resume": turns.resume,
    "report": scans.report,
    "list": scans.list_,
    "import": moves.import_,
    "export": moves.export,
    "workers": workers.workers,
    "bytes": memory.bytes_,
    "bookkeeping": bookkeeping.bookkeeping,
    "start": start.start,
    "growth": growth.growth,
}


def main() -> None:
    """Run the benchmarks that the command line names, and show their results."""
    parser = argparse.ArgumentParser(prog=table.COMMAND, description=purpose)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that everything works, the figures mean nothing"
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table to this file")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    names = [name for name in BENCHMARKS if name in chosen.names or not chosen.names]
    found: table.Found = {}
    load_before = machine.load()
    with table.bars(len(names)) as bars, Lab(QUICK if chosen.quick else Scale(), bars) as lab:
        for name in names:
            found[name] = list(BENCHMARKS[name](lab))
            bars.next()
        facts = machine.facts(list(lab.versions), load_before)
    if chosen.quick:
        facts.append("quick: small sizes, the figures mean nothing")
    table.show(found, facts)
    if chosen.markdown:
        chosen.markdown.write_text(table.markdown(found, facts), "utf-8")
    if missed := table.missed(found):
        print(f"{len(missed)} bounds are not held: {'; '.join(missed)}")
        if not chosen.quick:
            sys.exit(1)


if __name__ == "__main__":
    main()
