from __future__ import annotations

import pytest

from tests.faults.ledger import Ledger

LEDGER = Ledger()


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """`ledger("replies dropped, sync")` is the Tally to write down what was injected and what came of it."""
    return LEDGER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := LEDGER.lines():
        terminalreporter.section("faults injected")
        for line in lines:
            terminalreporter.write_line(line)
