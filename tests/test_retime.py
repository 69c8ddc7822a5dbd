"""Applying a lowered max age to all sessions: only TTLs are changed."""

from __future__ import annotations

import json
import re
from itertools import chain

import pytest
import redis

from redis_sessions import InvalidSettings, RetimeResult, SessionStore, StoreSettings
from redis_sessions.cli import exit_codes as exits
from redis_sessions.client.execute import run
from redis_sessions.keys import Keys, is_session_id
from redis_sessions.operations.command import Command
from redis_sessions.operations.retime import retime
from redis_sessions.operations.scan import Page
from redis_sessions.operations.scripts import RETIME
from redis_sessions.settings import DAY_MS
from tests import test_cli_support
from tests.servers import standalone
from tests.test_cli_support import Cli
from tests.test_report import plant_poison

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

pytestmark = pytest.mark.plants_immortal_keys

HOUR_MS = DAY_MS // 24


def result(**counts):
    names = ("looked_at", "shortened", "given_ttl", "left", "invalid", "invalid_no_ttl")
    return RetimeResult(**dict.fromkeys(names, 0) | counts, approximate=False)


def everything(raw, namespace):
    """Every key of the namespace with its value as bytes and whether it expires."""
    return {key: (raw.dump(key), raw.pttl(key) >= 0) for key in raw.scan_iter(f"{namespace}:*")}


@pytest.mark.everywhere
def test_it_shortens_or_sets_ttls_and_leaves_the_rest(store, raw, namespace):
    keys = Keys(namespace)
    lives_ms = {"day": DAY_MS, "hours": 2 * HOUR_MS, "hour": HOUR_MS, "minute": 60_000, "日本 {%}\n": DAY_MS}
    for key, life_ms in lives_ms.items():
        raw.set(keys.session_id(key), f"ID-{life_ms}", px=life_ms)
    raw.set(keys.session_id("immortal"), "ID-1")
    poison = plant_poison(raw, namespace)
    raw.set(keys.session_id("long words"), "two words", px=DAY_MS)
    raw.set(keys.record("day"), "no hash", px=60_000)
    store.acquire("leased")
    store.increment_resume_failures()
    raw.hset(keys.settings(), "max_age_ms", HOUR_MS)
    before = everything(raw, namespace)
    expected = result(looked_at=7 + poison, shortened=3, given_ttl=1, left=2, invalid=poison + 1, invalid_no_ttl=poison)

    assert store.retime(HOUR_MS, dry_run=True) == expected
    assert everything(raw, namespace) == before
    assert raw.pttl(keys.session_id("day")) > 2 * HOUR_MS

    assert store.retime(HOUR_MS) == expected
    immortal = keys.session_id("immortal")
    assert everything(raw, namespace) == before | {immortal: (before[immortal][0], True)}
    for key in ("day", "hours", "hour", "日本 {%}\n", "immortal"):
        assert HOUR_MS - 60_000 < raw.pttl(keys.session_id(key)) <= HOUR_MS
    assert 0 < raw.pttl(keys.session_id("minute")) <= 60_000
    assert raw.pttl(keys.session_id("long words")) > 2 * HOUR_MS
    assert raw.pttl(keys.lease("leased")) > 2 * DAY_MS

    again = store.retime(HOUR_MS)
    assert again == expected.model_copy(update={"shortened": 0, "given_ttl": 0, "left": 6})


def test_it_sets_the_max_age_of_the_namespace(store, raw, namespace):
    store.set("k", "ID-1")
    agreed = Keys(namespace).settings()
    assert store.retime(HOUR_MS, dry_run=True) == result(looked_at=1, shortened=1)
    assert raw.hgetall(agreed) == {b"max_age_ms": b"%d" % DAY_MS}
    assert store.retime(HOUR_MS) == result(looked_at=1, shortened=1)
    assert raw.hgetall(agreed) == {b"max_age_ms": b"%d" % HOUR_MS}
    assert store.retime(DAY_MS) == result(looked_at=1, left=1)
    assert raw.hgetall(agreed) == {b"max_age_ms": b"%d" % DAY_MS}
    assert raw.pttl(Keys(namespace).session_id("k")) <= HOUR_MS
    for wrong in (0, -1, 1.5, "1h", True):
        with pytest.raises(InvalidSettings, match="session_max_age_ms"):
            store.retime(wrong)


def test_many_pages_and_progress(make_store, raw, namespace):
    store = make_store(scan_count=10)
    for n in range(200):
        store.set(f"key{n}", f"ID-{n}")
        if n % 4 == 0:
            raw.persist(Keys(namespace).session_id(f"key{n}"))
    heard = []
    changed = store.retime(HOUR_MS, progress=lambda done, about: heard.append((done, about)))
    assert (changed.shortened, changed.given_ttl) == (150, 50)
    assert changed.looked_at == changed.left + 200
    assert len(heard) > 3
    assert heard[-1][0] == heard[-1][1] >= 200


def test_what_is_saved_after_the_page_was_read_is_safe(monkeypatch):
    """Between the page and the change, others save, delete, and put something else there.

    On a server of its own, where these keys are one page.
    """
    keys = Keys("sessions")
    with standalone() as server, SessionStore.from_url(server.url) as store, redis.Redis.from_url(server.url) as raw:
        for key in ("saved", "deleted", "spoilt", "same"):
            store.set(key, "ID-1")
        send = store.client.execute_command

        def execute_command(*args, **options):
            if args[:2] == ("EVALSHA", RETIME.sha):
                raw.set(keys.session_id("saved"), "ID-2", px=60_000)
                raw.delete(keys.session_id("deleted"))
                raw.set(keys.session_id("spoilt"), "two words")
            return send(*args, **options)

        monkeypatch.setattr(store.client, "execute_command", execute_command)
        assert store.retime(HOUR_MS) == result(looked_at=4, shortened=1, left=3)
        assert store.get("saved") == "ID-2"
        assert 0 < raw.pttl(keys.session_id("saved")) <= 60_000
        assert store.get("deleted") is None
        assert raw.pttl(keys.session_id("spoilt")) == -1


@pytest.mark.everywhere
def test_the_script_and_the_library_agree_on_session_ids(store, raw, namespace):
    values = [bytes([byte]) for byte in range(256)] + [b"a" + bytes([byte]) for byte in range(256)]
    values += [b"", b"x" * 256, b"x" * 257, b"x" * 300, b"a\n", b"a-b.c:d_e", b"-a", b"a\x00", b"a%"]
    client = raw.get_node_from_key("{x}").redis_connection if hasattr(raw, "get_node_from_key") else raw
    redis_keys = [f"{namespace}:{{x}}:{n}".encode() for n in range(len(values))]
    for redis_key, value in zip(redis_keys, values, strict=True):
        raw.set(redis_key, value)

    def retime():
        pairs = ((redis_key, redis_key + b":record") for redis_key in redis_keys)
        [reply] = yield [Command((HOUR_MS,), script=RETIME, redis_keys=tuple(chain.from_iterable(pairs)))]
        return reply

    assert run(client, retime()) == [2 if is_session_id(value) else 0 for value in values]


@pytest.mark.parametrize("values", [[b"ID-1", b"ID-1"], [b"ID-1", None]])
def test_a_key_that_has_expired_since_it_was_listed_does_not_count(values):
    class OnePage:
        """A scan of one page, without a server."""

        exact, pages = True, [[Page([Keys("ns").session_id(key) for key in ("a", "b")], [5, -2], values, 0)]]

        def next_pages(self):
            yield from ()
            return self.pages.pop() if self.pages else None

    with pytest.raises(StopIteration) as done:
        next(retime(StoreSettings(namespace="ns"), dry_run=True, scan=OnePage()))
    assert done.value.value == result(looked_at=1, left=1)


def test_the_command(cli: Cli) -> None:
    cli.plant("day")
    cli.plant("immortal", px=None)
    cli.plant("minute", px=60_000)
    cli.plant("bad", "two words", px=None)
    would = cli("retime", "--max-age", "1h", "--dry-run")
    assert re.search(r"^  shortened +1  would be, this was a dry run$", would.stdout, re.MULTILINE)
    assert cli.pttl_ms("immortal") == -1
    done = cli.json("retime", "--max-age", "1h", "--yes")
    counts = {"looked_at": 4, "shortened": 1, "given_ttl": 1, "left": 1, "invalid": 1, "invalid_no_ttl": 1}
    assert done == counts | {"approximate": False}
    shown = cli("retime", "--max-age", "1h", "--yes")
    assert shown.stderr == ""
    assert re.search(r"^  shortened +0$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  left +3  live no longer than 1h$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  invalid +1  no session IDs, not touched", shown.stdout, re.MULTILINE)
    assert cli.pttl_ms("bad") == -1
    assert 0 < cli.pttl_ms("immortal") <= HOUR_MS
    # What never expires now is not listed; what the alert on it says is where it is named.
    assert "bad" not in cli("list").stdout
    report = cli.json("report")
    assert report["no_ttl"] == 1
    assert [each["key"] for each in report["invalid_examples"]] == [cli.keys.session_id("bad").decode()]
    [alert] = re.findall(r"alert: RedisSessionsWithoutTTL.*?(?=- alert:)", cli("metrics", "--rules").stdout, re.DOTALL)
    assert all(command in alert for command in ("redis-sessions retime", "redis-sessions report --json"))


def test_the_command_says_when_keys_may_have_been_missed(cli: Cli) -> None:
    cli.plant("day")
    cli.raw.execute_command("ACL", "SETUSER", "noinfo", "on", "nopass", "~*", "+@all", "-info")
    limited = ["--url", cli.url.replace("//", "//noinfo:x@"), "--namespace", cli.namespace]
    shown = test_cli_support.run("retime", "--yes", "--json", "--max-age", "1h", "--yes", *limited, code=exits.PARTLY)
    assert json.loads(shown.stdout)["approximate"]
    assert "approximate" in shown.stderr
