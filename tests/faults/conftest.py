from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.ledger import LEDGER, Ledger
from tests.stores import Place


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """`ledger("replies dropped, sync")` is the Tally to write down what was injected and what came of it."""
    return LEDGER


@pytest.fixture
def clean(namespace: str) -> Iterator[Callable[[Place], Place]]:
    """Cleans the places that it is shown."""
    shown: list[Place] = []

    def show(place: Place) -> Place:
        shown.append(place)
        return place

    yield show
    for place in shown:
        for key in place.raw.scan_iter(f"{namespace}:*"):
            place.raw.delete(key)
