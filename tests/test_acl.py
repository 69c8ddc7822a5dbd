"""The ACL file: servers load it, every grant in it is needed, and whatever the server knows besides is refused."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager

import pytest
import redis
from redis.crc import key_slot

from redis_sessions import (
    AccessDenied,
    AsyncSessionStore,
    InexactScan,
    InvalidSettings,
    Lease,
    SessionStore,
    StoreSettings,
    Turn,
    acl,
    pools,
    scripts,
)
from redis_sessions.acl import USERS, acl_lines
from redis_sessions.cli import exits
from redis_sessions.keys import Keys
from redis_sessions.refusals import explain
from redis_sessions.server import EmbeddedServer
from tests.servers import is_redis_6
from tests.stores import Blocking
from tests.test_cli_support import run

VARIABLES = {f"REDIS_SESSIONS_{user.upper()}_PASSWORD": f"s3cret/random-enough-{user}" for user in USERS}
HASHES = {user: hashlib.sha256(f"s3cret/random-enough-{user}".encode()).hexdigest() for user in USERS}
KEYS = Keys("sessions")
OPERATOR = "user operator on nopass ~* &* +@all"


class Guarded:
    """A server with an ACL file."""

    def __init__(self, server):
        self.server = server
        self.raw = redis.Redis.from_url(self.url("operator"))

    def url(self, user):
        return f"redis://{user}:s3cret%2Frandom-enough-{user}@127.0.0.1:{self.server.port}/1"

    @contextmanager
    def connection(self, user):
        """A connection that sends what it is told to, whatever it is."""
        with redis.Redis.from_url(self.url(user), driver_info=None) as client:
            connection = client.connection_pool.get_connection()

            def send(*words):
                connection.send_command(*words)
                return connection.read_response()

            try:
                yield send
            finally:
                connection.disconnect()


@pytest.fixture(scope="module")
def guarded(binary, tmp_path_factory):
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    old = is_redis_6(binary)
    printed = run("acl", *["--redis-6"] * old, env=VARIABLES)
    assert printed.stderr == ""
    file.write_text(f"{printed.stdout}{OPERATOR}\n")
    # Debugging and modules are open to whoever may use them, so that it is by the list that nobody may.
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


def commands_of(send):
    """Every command and subcommand that the server knows: its name, how few words it takes, its flags."""
    for name, arity, flags, *rest in send("COMMAND"):
        subcommands = rest[-1] if rest and isinstance(rest[-1], list) else []
        nested = [entry[:3] for entry in subcommands if isinstance(entry, list)]
        for each, words, its_flags in nested or [(name, arity, flags)]:
            yield each.decode(), abs(words), {flag.decode().lstrip("+") for flag in its_flags}


def refused_commands(guarded, user, *, flag):
    """What the user is not granted, in as many words as it takes; but for commands with a flag."""
    with guarded.connection("operator") as send:
        known = list(commands_of(send))
    granted = USERS[user].commands | USERS[user].alone
    some = {"flushall", "config|set", "acl|setuser", "shutdown", "script|load", "keys", "monitor"}
    # Redis 6.2 tells of no subcommands.
    expected = {name.partition("|" if is_redis_6(guarded.server.binary) else " ")[0] for name in some | granted}
    assert expected - {"info|server"} <= {name for name, *_ in known}
    for name, count, flags in known:
        if name not in granted and flag not in flags:
            words = name.split("|")
            yield name, words + ["0"] * (count - len(words))


@pytest.mark.parametrize("user", USERS)
class TestRefused:
    def test_every_command_that_is_not_granted(self, guarded, user):
        refused = []
        with guarded.connection(user) as send:
            # AUTH, HELLO, QUIT and RESET are for those who have not logged in, and can't be refused.
            for name, words in refused_commands(guarded, user, flag="no_auth"):
                with pytest.raises(redis.exceptions.ResponseError, match=f"no permissions to run the '{re.escape(name)}'"):
                    send(*words)
                refused.append(name)
            assert len(refused) > 200
            assert send("PING") == b"PONG"

    def test_every_such_command_in_a_script(self, guarded, user):
        with guarded.connection(user) as send:
            sha = guarded.raw.script_load("return redis.call(unpack(ARGV))")
            count = 0
            for name, words in refused_commands(guarded, user, flag="noscript"):
                with pytest.raises(redis.exceptions.ResponseError) as caught:
                    send("EVALSHA", sha, 0, *words)
                assert isinstance(explain(caught.value, None, "h").error, AccessDenied), f"{name}: {caught.value}"
                count += 1
            assert count > 150

    def test_every_key_that_is_not_its_own(self, guarded, user):
        others = [b"sessions", b"sessions2:id:{a}", b"sessionsx:id:{a}", b"Sessions:id:{a}", b"x:sessions:id:{a}", b"*"]
        others += [b"sessions:id", b"sessions:counter", b"sessions:lease:{a}"] if user == "report" else []
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
                        error = explain(caught.value, None, "h").error
                        assert isinstance(error, AccessDenied), f"{sent}: {caught.value}"
                        assert key.decode() not in str(error).replace("redis-sessions", "")
                assert guarded.raw.get(key) == b"another's"

    def test_every_channel(self, guarded, user):
        assert guarded.raw.acl_getuser(user)["channels"] in ([], "")


def converse(store, _):
    """All that a worker does, whatever a server has cached."""
    store.set("a", "ID-1")
    store.get("a")
    store.peek("a")
    for step in (store.renew, store.reject, store.release):
        lease = store.acquire("a")
        assert isinstance(lease, Lease)
        store.acquire("a")
        step(lease)
        store.release(lease)
    store.save(store.acquire("a"), "ID-1")
    store.delete("a", "ID-1")
    store.delete("a")
    store.increment_resume_failures()
    store.resume_failures_total()
    assert store.resume("a", lambda _: Turn("ID-1", None), on_outage="raise").saved


def scan(store, tmp_path):
    assert store.report(lambda *_: None).live == 1
    assert [row.key for row in store.sessions()] == ["a"]
    assert store.live_session_ids() == {"ID-1"}
    assert store.export(tmp_path / "out.json").exported == 1
    store.resume_failures_total()


def move(store, tmp_path):
    converse(store, tmp_path)
    scan(store, tmp_path)
    (tmp_path / "in.json").write_text(json.dumps({"a": "ID-2", "b": "ID-3"}))
    for dry_run in (True, False):
        result = store.import_legacy(tmp_path / "in.json", assume_used_at="mtime", dry_run=dry_run)
        assert (result.imported, result.kept) == (1, 1)
    assert store.retime(60_000).shortened == 2
    diagnosis = store.doctor()
    unseen = {finding.check for finding in diagnosis.findings if finding.status == "unknown"}
    # It fails for nothing that it may not see.
    if unseen - {"replicas", "login", "replay", "rights"}:
        raise AccessDenied(f"the doctor does not see {unseen}", remedy="grant it")


WORK = {"worker": converse, "report": scan, "admin": move}


@pytest.fixture
def _checks_its_health(monkeypatch):
    """A client that sends PING before each command, and not only after 15 seconds."""
    monkeypatch.setattr(pools, "HEARD_OF_S", -1)


def without(grant, binary=None):
    """The rule that takes a grant back. Not every server can take back a part of INFO alone, and Redis 6.2 no part."""
    whole = grant == "info|server" or is_redis_6(binary)
    return f"-{grant.partition('|')[0] if whole else grant}"


@pytest.mark.usefixtures("_checks_its_health")
@pytest.mark.parametrize("user", USERS)
def test_every_grant_is_needed(guarded, user, tmp_path):
    for grant in (None, *sorted(USERS[user].commands | USERS[user].alone)):
        guarded.raw.flushall()
        guarded.raw.script_flush()
        with SessionStore.from_url(guarded.url("admin")) as admin:
            admin.set("a", "ID-1")
        with SessionStore.from_url(guarded.url(user)) as store:
            if grant is None:
                WORK[user](store, tmp_path)
                continue
            guarded.raw.execute_command("ACL SETUSER", user, without(grant, guarded.server.binary))
            guarded.raw.script_flush()
            with pytest.raises((AccessDenied, InexactScan)) as caught:
                WORK[user](store, tmp_path)
            guarded.raw.execute_command("ACL SETUSER", user, f"+{grant}")
        assert "s3cret" not in str(caught.value)
        assert caught.value.remedy


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
        ("SAVE", ["t", "ID-1", 1]),
        ("REJECT", ["t", "ID-1", 1]),
        ("DELETE_IF", ["t"]),
        ("PAGE", ["0", KEYS.prefix, "9", 0]),
    ],
)
def test_a_script_never_takes_what_is_denied_for_absent(guarded, name, words):
    """Else a worker whose list lacks GET is told that its lease was taken, and a report that all values are invalid."""
    guarded.raw.set(KEYS.session_id("a"), "ID-1")
    guarded.raw.execute_command("ACL SETUSER", "operator2", "on", "nopass", "~*", "+@all", "-get", "-getrange", "+select")
    sha = guarded.raw.script_load(getattr(scripts, name).source)
    keys = [] if name == "PAGE" else [KEYS.lease("a"), KEYS.session_id("a")]
    client = redis.Redis.from_url(guarded.url("operator2"))
    with client, pytest.raises(redis.exceptions.ResponseError) as caught:
        client.evalsha(sha, len(keys), *keys, *words)
    assert isinstance(explain(caught.value, None, "h").error, AccessDenied)


@pytest.mark.usefixtures("_checks_its_health")
@pytest.mark.parametrize("user", USERS)
def test_every_grant_is_needed_on_a_cluster(places, namespace, user, tmp_path):
    place = places.get("cluster-acl")
    place.set_users(namespace)
    settings = StoreSettings(namespace=namespace)
    everywhere = {"target_nodes": redis.RedisCluster.ALL_NODES}
    for grant in (None, *sorted((USERS[user].on_cluster | {"eval"}) - {"asking"})):
        place.raw.execute_command("SCRIPT FLUSH", **everywhere)
        with SessionStore.from_url(place.user_url("admin", namespace), settings) as admin:
            admin.set("a", "ID-1")
            admin.delete("b")
        if grant:
            place.raw.execute_command("ACL SETUSER", f"{user}.{namespace}", without(grant), **everywhere)
        with SessionStore.from_url(place.user_url(user, namespace), settings) as store:
            if grant is None:
                WORK[user](store, tmp_path)
                continue
            with pytest.raises((AccessDenied, InexactScan)):
                WORK[user](store, tmp_path)
            place.raw.execute_command("ACL SETUSER", f"{user}.{namespace}", f"+{grant}", **everywhere)
    for key in place.raw.scan_iter(f"{namespace}:*"):
        place.raw.delete(key)


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_a_cluster_that_refuses_a_password_is_not_asked_again(places, namespace, loop, kind):
    place = places.get("cluster-acl")
    place.set_users(namespace)
    store = kind.from_url(place.user_url("worker", namespace).replace("s3cret", "s3cre"), StoreSettings(namespace=namespace))
    store = store if kind is SessionStore else Blocking(store, loop)
    with pytest.raises(AccessDenied, match="refuses this user's password"):
        store.get("a")
    store.close()


def test_a_slot_that_is_moving_is_followed(places, namespace):
    """While a slot moves, a key that is gone already is asked for at its new place, with ASKING."""
    place = places.get("cluster-acl")
    place.set_users(namespace)
    slot = key_slot(Keys(namespace).session_id("a"))
    here = place.raw.get_node_from_key(Keys(namespace).session_id("a"))
    there = next(node for node in place.raw.get_primaries() if node != here)

    def on(node, *words):
        return place.raw.execute_command(*words, target_nodes=node)

    ids = {node.name: on(node, "CLUSTER MYID").decode() for node in (here, there)}
    on(there, "CLUSTER SETSLOT", slot, "IMPORTING", ids[here.name])
    on(here, "CLUSTER SETSLOT", slot, "MIGRATING", ids[there.name])
    try:
        with SessionStore.from_url(place.user_url("worker", namespace), StoreSettings(namespace=namespace)) as store:
            assert store.get("a") is None
            on_all = {"target_nodes": redis.RedisCluster.ALL_NODES}
            place.raw.execute_command("ACL SETUSER", f"worker.{namespace}", "-asking", **on_all)
            with pytest.raises(AccessDenied):
                store.get("a")
    finally:
        for node in (here, there):
            on(node, "CLUSTER SETSLOT", slot, "STABLE")


class TestLines:
    def test_redis_6_is_given_no_pattern_that_it_does_not_know(self):
        assert any("%R~sessions:id:*" in line for line in acl_lines())
        assert not any("%" in line for line in acl_lines(read_only_keys=False))

    @pytest.mark.parametrize("namespace", ["", "a b", "a*", "a?", "a[b]", "a\n", "a:b", "ä", "x" * 129, "%R~a"])
    def test_no_glob_space_or_line_can_enter(self, namespace):
        with pytest.raises(InvalidSettings):
            acl_lines(namespace)
        run("acl", "--namespace", namespace, code=exits.USAGE)

    def test_the_report_is_granted_no_command_that_writes(self, guarded):
        with guarded.connection("operator") as send:
            writing = {name for name, _, flags in commands_of(send) if "write" in flags}
        assert "set" in writing
        assert not acl.USERS["report"].commands & writing


class TestPrinted:
    def test_a_password_is_only_its_hash(self):
        shown = run("acl", env=VARIABLES)
        assert "s3cret" not in shown.output
        for user, password_hash in HASHES.items():
            assert f"\nuser {user} on #{password_hash} " in shown.stdout

    def test_a_user_without_a_password_is_off_and_that_is_said(self):
        shown = run("acl", env={"REDIS_SESSIONS_WORKER_PASSWORD": "x" * 20, "REDIS_SESSIONS_ADMIN_PASSWORD": ""})
        lines = shown.stdout.splitlines()
        assert [line.split()[1:3] for line in lines] == [
            ["default", "off"],
            ["worker", "on"],
            ["report", "off"],
            ["admin", "off"],
        ]
        said = shown.stderr.splitlines()
        assert [re.search(r"set (\w+)$", line)[1] for line in said] == [
            "REDIS_SESSIONS_REPORT_PASSWORD",
            "REDIS_SESSIONS_ADMIN_PASSWORD",
        ]

    def test_passwords_that_can_be_guessed(self):
        shown = run("acl", env=VARIABLES | {"REDIS_SESSIONS_ADMIN_PASSWORD": "s3cret"})
        assert "s3cret" not in shown.output
        assert shown.stderr == (
            "redis-sessions: the password of admin can be guessed from its hash: take 20 random characters or more\n"
        )

    def test_its_options(self):
        printed = run("acl", "--namespace", "a@b", "--cluster", "--redis-6", env=VARIABLES).stdout.splitlines()
        assert printed == acl_lines("a@b", password_hashes=HASHES, cluster=True, read_only_keys=False)
        assert all("+cluster|slots" in line and " ~a@b:" in line for line in printed[1:])


def test_what_its_users_wrote_is_there_after_a_restart(binary, tmp_path):
    """Redis loads its append-only file as the default user, and drops what that one may not do."""
    (tmp_path / "users.acl").write_text(
        "\n".join(acl_lines(password_hashes=HASHES, read_only_keys=not is_redis_6(binary))) + "\n"
    )
    extra = {"aclfile": str(tmp_path / "users.acl")}
    with EmbeddedServer(directory=tmp_path / "data", binary=binary, extra=extra) as server:
        url = server.url.replace("//", "//worker:s3cret%2Frandom-enough-worker@")
        with SessionStore.from_url(url) as store:
            assert store.save(store.acquire("leased"), "ID-1")
            store.set("set", "ID-2")
            held = store.acquire("held")
            assert isinstance(held, Lease)
        server.stop()
        server.start()
        with SessionStore.from_url(url) as store:
            assert (store.get("leased"), store.get("set")) == ("ID-1", "ID-2")
            assert store.acquire("held").holder == held.token
