from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_sessions import StoreSettings
from tests.stores import Place


@pytest.fixture(params=["valkey", "cluster"])
def place(request: pytest.FixtureRequest, places: Any, clean: Callable[[Place], Place]) -> Place:
    """One server or several: a pool of connections, or one for each node."""
    return clean(places.get(request.param))


@pytest.fixture
def settings(namespace: str) -> StoreSettings:
    return StoreSettings(namespace=namespace)
