"""Counts which faults were injected and what their effects were; pytest prints the table at its end. No tests."""

from __future__ import annotations

import sys
import traceback
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

HARM: Final = ("lost", "wrong", "untyped", "double_runs")


@dataclass
class Tally:
    """One fault, over all tests that injected it.

    Attributes:
        fault: what was done, and to what: a row's name.
        injected: how often.
        operations: how many operations were under way or followed, answered or not.
        refused: operations that ended in a typed error, as they may.
        lost: acknowledged saves that were not there, and counts above 1 or below 0 of one increment.
        wrong: replies that were another key's, or no reply to what was asked.
        untyped: errors that were not this package's.
        double_runs: two runs of one conversation at a time, by workers that kept contact with the server.
        reported: runs beyond the promise (no contact, lease lost in a failover), each of which its worker was informed of.
        first: by kind of harm, the stack where it was first seen, and that of the error if there was one.
    """

    fault: str
    injected: int = 0
    operations: int = 0
    refused: int = 0
    lost: int = 0
    wrong: int = 0
    untyped: int = 0
    double_runs: int = 0
    reported: int = 0
    first: dict[str, str] = field(default_factory=dict, compare=False)

    def __setattr__(self, name: str, value: object) -> None:
        if name in HARM and value and name not in self.__dict__.get("first", HARM):  # not what another process counted
            error = sys.exc_info()[1]
            self.first[name] = "".join(traceback.format_exception(error) if error else traceback.format_stack()[:-1])
        super().__setattr__(name, value)

    def check(self) -> None:
        """Fail the test if there was harm, or if nothing was injected and so nothing was proven."""
        assert self.injected, f"{self.fault}: nothing was injected"
        assert self.operations, f"{self.fault}: nothing was under way"
        harm = {name: count for name in HARM if (count := getattr(self, name))}
        assert not harm, "\n".join([f"{self.fault}: {harm}", *(f"first {name}: {self.first[name]}" for name in harm)])


class Ledger:
    """The tallies of one test run."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []

    def __call__(self, fault: str) -> Tally:
        """A new tally; what it holds at the end is added to the row of that name."""
        self._tallies.append(Tally(fault))
        return self._tallies[-1]

    def dump(self) -> list[dict[str, Any]]:
        """All tallies, for another process."""
        # A name may be a member of an enumeration, of which only the text can be passed to another process.
        return [asdict(tally) | {"fault": str.__str__(tally.fault)} for tally in self._tallies]

    def take(self, dumped: list[dict[str, Any]]) -> None:
        """Add what another process dumped."""
        self._tallies += [Tally(**values) for values in dumped]

    def lines(self) -> list[str]:
        """The table: a row for each fault, and the sums at the end."""
        if not self._tallies:
            return []
        rows: dict[str, list[int]] = {}
        for tally in [*self._tallies, *(replace(tally, fault="all") for tally in self._tallies)]:
            row = rows.setdefault(tally.fault, [0] * len(NUMBERS))
            rows[tally.fault] = [total + getattr(tally, name) for total, name in zip(row, NUMBERS, strict=True)]
        table = [["fault", *(name.replace("_", " ") for name in NUMBERS)]]
        table += [[fault, *(f"{number:,}" for number in numbers)] for fault, numbers in rows.items()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join([fault.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
            for fault, *cells in table
        ]


NUMBERS: Final = tuple(each.name for each in fields(Tally) if each.type == "int")
LEDGER: Final = Ledger()
