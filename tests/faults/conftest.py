"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.ledger import LEDGER, Ledger
from tests.stores import Place


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """`ledger("replies dropped, sync")` is the Tally that counts what was injected and its effects."""
    return LEDGER


@pytest.fixture
def clean(namespace: str) -> Iterator[Callable[[Place], Place]]:
    """A function that has a place cleaned up after the test."""
    shown: list[Place] = []

    def show(place: Place) -> Place:
        shown.append(place)
        return place

    yield show
    for place in shown:
        for key in place.raw.scan_iter(f"{namespace}:*"):
            place.raw.delete(key)
