"""Commands and keys that a user is not granted are refused, in scripts, too."""

from __future__ import annotations

import re

import pytest
import redis

from redis_sessions import (
    AccessDenied,
    SessionStore,
    StoreSettings,
)
from redis_sessions.client.translate import translate
from redis_sessions.operations import scripts
from redis_sessions.operations.acl import USERS
from tests.acl.users import KEYS, commands_of
from tests.servers import is_redis_6


def refused_commands(guarded, user, *, flag):
    """Commands that the user is not granted, with as many words as they take, without those that have a flag."""
    with guarded.connection("operator") as send:
        known = list(commands_of(send))
    granted = USERS[user].commands | USERS[user].alone
    granted -= {"eval_ro"} if is_redis_6(guarded.server.binary) else set()
    some = {"flushall", "config|set", "acl|setuser", "shutdown", "script|load", "keys", "monitor"}
    # Redis 6.2 does not list subcommands.
    expected = {name.partition("|" if is_redis_6(guarded.server.binary) else " ")[0] for name in some | granted}
    assert expected - {"info|server"} <= {name for name, *_ in known}
    for name, count, flags in known:
        if name not in granted and flag not in flags:
            words = name.split("|")
            yield name, words + ["0"] * (count - len(words))


@pytest.mark.parametrize("user", USERS)
class TestRefused:
    def test_other_commands(self, guarded, user):
        refused = []
        with guarded.connection(user) as send:
            # AUTH, HELLO, QUIT and RESET are for clients that have not logged in, and can't be refused.
            for name, words in refused_commands(guarded, user, flag="no_auth"):
                with pytest.raises(redis.exceptions.ResponseError, match=f"no permissions to run the '{re.escape(name)}'"):
                    send(*words)
                refused.append(name)
            assert len(refused) > 200
            assert send("PING") == b"PONG"

    def test_other_commands_in_a_script(self, guarded, user):
        with guarded.connection(user) as send:
            sha = guarded.raw.script_load("return redis.call(unpack(ARGV))")
            count = 0
            for name, words in refused_commands(guarded, user, flag="noscript"):
                with pytest.raises(redis.exceptions.ResponseError) as caught:
                    send("EVALSHA", sha, 0, *words)
                assert isinstance(translate(caught.value, None, "h").error, AccessDenied), f"{name}: {caught.value}"
                count += 1
            assert count > 150

    def test_other_keys(self, guarded, user):
        others = [b"sessions", b"sessions2:id:{a}", b"sessionsx:id:{a}", b"Sessions:id:{a}", b"x:sessions:id:{a}", b"*"]
        others += [b"sessions:id", b"sessions:counter", b"sessions:lease"] if user == "report" else []
        with guarded.connection(user) as send:
            sha = guarded.raw.script_load("return redis.call(unpack(ARGV))")
            for key in others:
                guarded.raw.set(key, "another's")
                on_keys = {"get", "set", "del", "pttl", "pexpire", "incr", "mget", "exists"}
                for command in (USERS[user].commands | USERS[user].alone) & on_keys:
                    words = [command, key, *{"set": ["v"], "pexpire": [9]}.get(command, [])]
                    for sent in (words, ["EVALSHA", sha, 0, *words], ["EVALSHA", sha, 1, key, *words]):
                        with pytest.raises(redis.exceptions.ResponseError) as caught:
                            send(*sent)
                        error = translate(caught.value, None, "h").error
                        assert isinstance(error, AccessDenied), f"{sent}: {caught.value}"
                        assert key.decode() not in str(error).replace("redis-sessions", "")
                assert guarded.raw.get(key) == b"another's"

    def test_channels(self, guarded, user):
        assert guarded.raw.acl_getuser(user)["channels"] in ([], "")


def test_the_default_user_is_off(guarded):
    with SessionStore.from_url(guarded.server.url) as store, pytest.raises(AccessDenied) as caught:
        store.get("a")
    assert "user" in caught.value.remedy


def test_a_denied_command_is_named(guarded):
    with SessionStore.from_url(guarded.url("report")) as store:
        with pytest.raises(AccessDenied, match=r"does not grant this user the command set \(NOPERM\): redis-sessions acl"):
            store.set("a", "ID-1")
        with (
            pytest.raises(AccessDenied, match="access to this key"),
            SessionStore(store.client, StoreSettings(namespace="other")) as other,
        ):
            other.get("a")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RENEW", ["t", 1]),
        ("ACQUIRE", ["t", 1, 1]),
        ("SAVE", ["t", "ID-1", 1, "", "", "keep", "0"]),
        ("REJECT", ["t", "ID-1", 1, "0"]),
        ("FAIL", ["t", "ID-1", 1, "0"]),
        ("RELEASE", ["t", "0"]),
        ("DELETE", ["ID-1", "0"]),
        ("PAGE", ["0", KEYS.prefix, "9", "", ""]),
    ],
)
def test_scripts_do_not_take_denied_for_absent(guarded, name, words):
    """Otherwise a worker without GET is told that its lease was taken, and a report that all values are invalid."""
    guarded.raw.set(KEYS.session_id("a"), "ID-1")
    guarded.raw.execute_command("ACL SETUSER", "operator2", "on", "nopass", "~*", "+@all", "-get", "-mget", "+select")
    sha = guarded.raw.script_load(getattr(scripts, name).source)
    keys = [] if name == "PAGE" else [KEYS.lease("a"), KEYS.session_id("a"), KEYS.record("a")]
    client = redis.Redis.from_url(guarded.url("operator2"))
    with client, pytest.raises(redis.exceptions.ResponseError) as caught:
        client.evalsha(sha, len(keys), *keys, *words)
    assert isinstance(translate(caught.value, None, "h").error, AccessDenied)
