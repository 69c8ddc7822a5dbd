"""A cluster by the URL of a single server: nothing breaks, no part is taken for all, and the remedy is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from redis_sessions import AsyncSessionStore, SessionStore, SessionStoreError, StoreUnavailable, Turn
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli.app import app
from redis_sessions.keys import Keys
from tests.servers import Cluster
from tests.stores import opened
from tests.test_cli_support import run

REMEDY = "write redis\\+cluster://"
KEYS = [f"chat:{number}" for number in range(60)]


@pytest.fixture(scope="module")
def cluster(binary: Path | None) -> Iterator[Cluster]:
    with Cluster(binary) as cluster:
        yield cluster


def broken(cluster: Cluster) -> list[str]:
    """Which of the keys no script can read any more."""
    with SessionStore.from_url(cluster.url) as store:
        client, failed = store.client, []
        for key in KEYS:
            try:
                client.eval("return redis.call('GET', KEYS[1])", 1, Keys("sessions").session_id(key))
            except redis.ResponseError as error:
                failed.append(f"{key}: {error}")
    return failed


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_the_remedy_is_named_and_every_script_still_runs(cluster, kind, loop, tmp_path) -> None:
    """On Valkey 9 an MGET over several slots in a script makes all later scripts of that node fail."""
    with SessionStore.from_url(cluster.url) as store:
        for key in KEYS:
            store.set(key, "ID-1")
    file = tmp_path / "in.json"
    file.write_text(json.dumps(dict.fromkeys(KEYS, "ID-2")))
    url = cluster.nodes[0].url
    with opened(kind, url, loop) as store:
        for scan in (
            store.report,
            lambda: list(store.sessions()),
            lambda: list(store.leases()),
            store.live_session_ids,
            lambda: store.retime(60_000),
            lambda: store.export(tmp_path / "out.json"),
            lambda: store.import_legacy(file, assume_used_at="mtime"),
        ):
            with pytest.raises(StoreUnavailable, match=REMEDY):
                scan()
        refused = 0
        for key in KEYS:
            try:
                assert store.get(key) == "ID-1"
            except SessionStoreError as error:
                refused += 1
                assert "redis+cluster://" in str(error)
            else:
                assert store.resume(key, lambda _: Turn("ID-1"), on_outage="raise").saved
        assert 0 < refused < len(KEYS)
        elsewhere = next(key for key in KEYS if refuses(store, key))
        assert "redis+cluster://" in store.resume(elsewhere, lambda _: Turn("ID-9")).reason
    for command in ("report", "list", "doctor"):
        shown = run(command, "--url", url, code=exits.UNREACHABLE)
        assert "redis+cluster://" in shown.stderr + shown.stdout
    metrics = CliRunner().invoke(app, ["metrics", "--url", url])
    assert (metrics.exit_code, "redis+cluster://" in metrics.stderr) == (exits.UNREACHABLE, True)
    assert not re.search("^redis_sessions_(live|leases)", metrics.stdout, re.MULTILINE)
    assert broken(cluster) == []


def refuses(store: SessionStore, key: str) -> bool:
    try:
        store.get(key)
    except StoreUnavailable:
        return True
    return False
