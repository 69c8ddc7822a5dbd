from __future__ import annotations

import pytest

from tests.faults.ledger import LEDGER, Ledger


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """`ledger("replies dropped, sync")` is the Tally to write down what was injected and what came of it."""
    return LEDGER
