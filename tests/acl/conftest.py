from __future__ import annotations

import pytest

from redis_sessions.client import pool as pools
from redis_sessions.server import EmbeddedServer
from tests.acl.users import OPERATOR, VARIABLES, Guarded
from tests.servers import is_redis_6
from tests.test_cli_support import run


@pytest.fixture(scope="module")
def guarded(binary, tmp_path_factory):
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    old = is_redis_6(binary)
    printed = run("acl", *["--redis-6"] * old, env=VARIABLES)
    assert printed.stderr == ""
    file.write_text(f"{printed.stdout}{OPERATOR}\n")
    # Debugging and modules are enabled, so that only the ACL forbids them.
    unlocked = {} if old else {"enable-debug-command": "yes", "enable-module-command": "yes"}
    with EmbeddedServer(binary=binary, extra={"aclfile": str(file)} | unlocked) as server:
        guarded = Guarded(server)
        yield guarded
        guarded.raw.close()


@pytest.fixture(autouse=True)
def _empty(request):
    yield
    if "guarded" in request.fixturenames:
        request.getfixturevalue("guarded").raw.flushall()


@pytest.fixture
def _checks_its_health(monkeypatch):
    """A client that sends PING before each command, and not only after 15 seconds."""
    monkeypatch.setattr(pools, "FRESH_S", -1)
    monkeypatch.setattr(pools, "PING_AFTER_S", -1)
