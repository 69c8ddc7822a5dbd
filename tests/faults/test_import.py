"""Import and export killed at any point: an import can be run again; an export leaves the whole old or new file."""

from __future__ import annotations

import contextlib
import json
import random
import stat
import subprocess
import sys
from itertools import chain

import pytest
import redis

from redis_sessions import SessionStore, StoreSettings
from redis_sessions.keys import Keys
from redis_sessions.legacy import file as legacy
from redis_sessions.settings import DAY_MS
from tests.servers import find_redis_7, standalone, wait_until

RECORDS = 20_000
LIVE = range(0, RECORDS, 100)  # live in Redis already
OLD = range(70, RECORDS, 1_000)  # expired already
SHORT = range(50, RECORDS, 1_000)  # with so little life left that they expire between one run and the next
SHORT_MS = 1_500
FEW_OR_MANY = [2, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]


@pytest.fixture(params=["valkey", "redis"])
def server(request):
    """A separate server, so that DBSIZE shows how far an import has come."""
    binary = find_redis_7() if request.param == "redis" else None
    if request.param == "redis" and binary is None:
        pytest.skip("no redis-server since 7 on the PATH")
    with standalone(binary) as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def start():
    """Start `redis-sessions` with these words; ended when the test ends."""
    started = []

    def start(*words):
        line = [sys.executable, "-m", "redis_sessions", *map(str, words)]
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def killed_once(process, condition):
    """Kill it as soon as the condition holds; whether that was before its end."""
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.001)
            break
    process.kill()
    return process.wait() < 0


def write_records(path, client):
    """Records of every age; a few with little life left, or none. Returns when all of the former are gone."""
    seconds, microseconds = client.time()
    now_ms = seconds * 1000 + microseconds // 1000
    age_ms = {n: random.randrange(60_000, DAY_MS - 3_600_000) for n in range(RECORDS)}
    age_ms |= dict.fromkeys(SHORT, DAY_MS - SHORT_MS) | dict.fromkeys(OLD, DAY_MS + 1)
    path.write_text(json.dumps({f"{n}": {"id": f"ID-{n}", "last_used_at": now_ms - age_ms[n]} for n in age_ms}))
    return now_ms + SHORT_MS


def state(client, keys, numbers=range(RECORDS)):
    """What stands in Redis: each value, and the very millisecond in which it expires."""
    pipe = client.pipeline(transaction=False)
    for n in numbers:
        pipe.get(keys.session_id(f"{n}"))
        pipe.pexpiretime(keys.session_id(f"{n}"))
    replies = pipe.execute()
    return list(zip(replies[0::2], replies[1::2], strict=True))


@pytest.mark.parametrize("kills", FEW_OR_MANY)
def test_a_killed_import_that_is_run_again_has_the_same_result(server, client, start, kills, tmp_path, ledger):
    tally, path = ledger("import killed and run again"), tmp_path / "sessions.json"
    killed, whole = Keys("killed"), Keys("whole")
    words = ("import", "--json", "--url", server.url, "--namespace", "killed", path)
    for _ in range(kills // 2):
        client.flushall()
        for n in LIVE:
            client.set(killed.session_id(f"{n}"), f"live-{n}", px=DAY_MS // 2)
            client.copy(killed.session_id(f"{n}"), whole.session_id(f"{n}"))
        live = state(client, killed, LIVE)
        all_expired_at_ms = write_records(path, client)
        with SessionStore.from_url(server.url, StoreSettings(namespace="whole")) as store:
            undisturbed = store.import_legacy(path)
        before = client.dbsize()
        for share in sorted(random.sample(range(60), 2)):
            enough = before + undisturbed.imported * share // 100
            tally.injected += killed_once(start(*words), lambda enough=enough: client.dbsize() > enough)
        wait_until(lambda at_s=all_expired_at_ms / 1000: client.time()[0] > at_s, "some records have expired")
        process = start(*words)
        said = json.loads(process.communicate()[0])
        assert process.returncode == 0
        assert (said["total"], said["expired"]) == (RECORDS, len(OLD) + len(SHORT))
        assert said["imported"] + said["expired"] + said["kept"] == RECORDS
        tally.operations += RECORDS
        tally.lost += sum(was != now for was, now in zip(live, state(client, killed, LIVE), strict=True))
        tally.wrong += sum(a != b for a, b in zip(state(client, killed), state(client, whole), strict=True))
        assert client.get(killed.session_id(f"{SHORT[0]}")) is None
    tally.check()


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("kills", FEW_OR_MANY)
def test_a_killed_export_leaves_the_whole_old_or_new_file(server, client, start, kills, tmp_path, ledger):
    """Its unfinished file stays beside it, as `.NAME.xxxxxxxx`, readable by its owner only, and does no harm."""
    tally, path = ledger("export killed"), tmp_path / "sessions.json"
    write_records(path, client)
    with SessionStore.from_url(server.url) as store:
        store.import_legacy(path)
        store.export(path)
        old, size = path.read_bytes(), path.stat().st_size
        store.set("new", "ID-new")
        keys = {row.key for row in store.sessions()} - {f"{n}" for n in SHORT}

    def begun():
        drafts = []
        for draft in tmp_path.glob(".sessions.json.*"):
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                drafts.append(draft.stat().st_size)
        return len(drafts), sum(drafts)

    for number in range(kills):
        drafts, written = begun()
        # While it reads, and while it writes.
        enough = (drafts, size * kills) if number % 2 else (drafts + 1, written + random.randrange(size * 9 // 10))
        tally.injected += killed_once(start("export", "--url", server.url, path), lambda enough=enough: begun() > enough)
        tally.operations += 1
        if path.read_bytes() != old:
            tally.lost += bool(keys - {entry.key for entry in legacy.read(path)})
            path.write_bytes(old)
    drafts = list(tmp_path.glob(".sessions.json.*"))
    assert len(drafts) <= kills
    assert {stat.S_IMODE(draft.stat().st_mode) for draft in drafts} <= {0o600}
    assert start("export", "--url", server.url, path).wait() == 0
    tally.lost += bool(keys - {entry.key for entry in legacy.read(path)})
    assert set(tmp_path.iterdir()) == set(chain([path], drafts))
    tally.check()
