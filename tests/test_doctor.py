"""The doctor finds each of the faults that are planted here, on real servers, and none on a healthy one."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
import redis
import time_machine

from redis_sessions import AsyncSessionStore, InvalidSettings, SessionStore, StoreSettings, StoreUnavailable, upkeep
from redis_sessions.access import login, place_of, replay, rights, tls
from redis_sessions.acl import USERS
from redis_sessions.checks import NODE_CHECKS, Node
from redis_sessions.cli import exits
from redis_sessions.errors import SessionStoreError
from redis_sessions.findings import LOOK_RIGHTS, Connection
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from redis_sessions.settings import DAY_MS
from tests import test_cli_support
from tests.servers import find_redis_server, wait_until
from tests.stores import Blocking
from tests.test_cli_support import run
from tests.test_report import plant_poison

pytestmark = pytest.mark.plants_immortal_keys

no_variables = test_cli_support.no_variables

ADMIN = USERS["admin"]
LOOK = LOOK_RIGHTS.split()
NEEDED = " ".join(f"+{word}" for word in ADMIN.commands | ADMIN.alone | ADMIN.on_cluster if f"+{word}" not in LOOK)
CHECKS = [
    *("server", "role", "cluster", "eviction", "memory", "append-only", "appendfsync", "disk", "replicas"),
    *("login", "replay", "rights", "tls", "round-trip", "clock", "client"),
    *("no-ttl", "max-age", "values", "leases", "counters", "agent"),
]


def troubles(diagnosis):
    """What is not ok, by check."""
    return {finding.check: finding.status.value for finding in diagnosis.findings if finding.status != "ok"}


def found(diagnosis, check):
    [finding] = [finding for finding in diagnosis.findings if finding.check == check]
    return finding


@contextmanager
def healthy(directory, *, binary=None, rights=f"{NEEDED} {LOOK_RIGHTS}", user="sessions", **extra):
    """A store on a server as `serve` runs it, with settings of its own, and a user that may look."""
    settings = {name.replace("_", "-"): value for name, value in extra.items()}
    server = EmbeddedServer(binary=binary, directory=directory, extra=settings)
    with server, redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL", "SETUSER", "sessions", "on", ">s3cret/x", "~sessions:*", "-@all", *rights.split())
        login = f"{user}:s3cret%2Fx@" if user else ""
        with SessionStore.from_url(server.url.replace("//", f"//{login}")) as store:
            yield store, raw


def test_a_healthy_server_has_no_fault(tmp_path, binary):
    with healthy(tmp_path / "data", binary=binary) as (store, _):
        store.set("k", "ID-1")
        store.acquire("k")
        store.increment_resume_failures()
        diagnosis = store.doctor("claude")
    assert troubles(diagnosis) == {}
    assert [finding.check for finding in diagnosis.findings] == CHECKS
    assert (diagnosis.broken, diagnosis.warnings, diagnosis.unknown, diagnosis.ok) == (0, 0, 0, len(CHECKS))
    assert all(finding.why and finding.remedy is None for finding in diagnosis.findings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, {"eviction": "broken"}),
        ({"maxmemory_policy": "volatile-lru"}, {"eviction": "warning"}),
        ({"maxmemory_policy": "noeviction"}, {"eviction": "warning"}),
        ({"maxmemory": "0"}, {"memory": "warning"}),
        ({"maxmemory": "0", "maxmemory_policy": "noeviction"}, {"memory": "warning"}),
        ({"maxmemory": "900kb", "maxmemory_policy": "noeviction"}, {"memory": "broken", "eviction": "warning"}),
        ({"appendonly": "no"}, {"append-only": "broken"}),
        ({"appendonly": "no", "save": "60 1"}, {"append-only": "warning"}),
        ({"appendfsync": "no"}, {"appendfsync": "warning"}),
        ({"min_replicas_to_write": "1"}, {"replicas": "broken"}),
    ],
    ids=lambda value: " ".join(f"{name}={word}" for name, word in value.items()),
)
def test_settings_of_the_server(tmp_path, binary, settings, expected):
    # Redis 6.2 does not take it as one word of its command line.
    snapshots = {name: value for name, value in settings.items() if name == "save"}
    started_with = {name: value for name, value in settings.items() if name not in snapshots}
    with healthy(tmp_path / "data", binary=binary, **started_with) as (store, raw):
        for name, value in snapshots.items():
            raw.config_set(name, value)
        diagnosis = store.doctor()
    assert troubles(diagnosis) == expected
    assert all(found(diagnosis, check).remedy for check in expected)


def test_the_remedy_for_the_server_mends_it(tmp_path):
    with healthy(tmp_path / "data", maxmemory="0", maxmemory_policy="allkeys-lru", appendonly="no") as (store, raw):
        for check in troubles(store.doctor()):
            words = found(store.doctor(), check).remedy.removeprefix("redis-cli ").split()
            raw.execute_command(*words)
        wait_until(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0, "the append-only file is there")
        assert troubles(store.doctor()) == {}


def test_what_the_server_will_not_read_back(binary, tmp_path):
    """Where the doctor finds nothing, a restart loses no save; its remedy brings that about."""
    (tmp_path / "users.acl").write_text("user default off -@all\nuser operator on nopass ~* &* +@all\n")
    extra = {"aclfile": str(tmp_path / "users.acl")}
    with EmbeddedServer(directory=tmp_path / "data", binary=binary, extra=extra) as server:
        url = server.url.replace("//", "//operator@")

        def foretold(key):
            with SessionStore.from_url(url) as store:
                finding = found(store.doctor(), "replay")
                assert store.save(store.acquire(key), "ID-1")
                server.stop()
                server.start()
                assert store.get(key) == "ID-1" or finding.status == "broken"
                return finding

        finding = foretold("a")
        with redis.Redis.from_url(url) as raw:
            told = raw.info("server")
            age = [int(part) for part in told.get("valkey_version", told["redis_version"]).split(".")]
            reads_all = age >= [9, 1, 2] if "valkey_version" in told else not [7] <= age < [8, 6]
            assert finding.status == ("ok" if reads_all else "broken")
            command, _, words = (finding.remedy or "redis-cli PING").partition(",")[0].partition(" ")
            assert command == "redis-cli"
            raw.execute_command(*words.split())
            raw.acl_save()
        assert foretold("b").status == "ok"


@pytest.mark.parametrize(
    ("commands", "keys", "status"),
    [
        ("+@all", ["~*"], "ok"),
        ("+@all -@dangerous -eval", ["*"], "ok"),
        ("+@all -@write", ["~*"], "broken"),
        ("+@all -multi", ["~*"], "broken"),
        ("+@all", ["~mine:*"], "broken"),
        ("-@all +@all", ["~*"], "broken"),
    ],
)
def test_what_the_default_user_must_be_granted(commands, keys, status):
    node = Node({"aof_enabled": 1, "redis_version": "7.4.1"}, {})
    assert replay({"commands": commands, "keys": keys}, node)[0] == status


def test_sessions_that_were_evicted(tmp_path):
    with healthy(tmp_path / "data", maxmemory="3mb") as (store, raw):
        for number in range(400):
            raw.set(f"other:{number}", "x" * 10_000, px=DAY_MS)
        assert troubles(store.doctor()) == {"memory": "warning"}


def test_a_disk_that_can_not_be_written(tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "taken").mkdir()
    with healthy(tmp_path / "data", dbfilename="taken") as (store, raw):
        raw.bgsave()
        wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] != "ok", "the snapshot failed")
        assert troubles(store.doctor()) == {"disk": "broken"}


def test_replicas_that_no_save_waits_for(tmp_path):
    with healthy(tmp_path / "one", repl_diskless_sync_delay="0") as (store, raw):
        port = raw.get_connection_kwargs()["port"]
        with healthy(tmp_path / "two", replicaof=f"127.0.0.1 {port}") as (replica, raw_replica):
            wait_until(lambda: raw_replica.info("replication")["master_link_status"] == "up", "the replica is in step")
            assert troubles(store.doctor()) == {"replicas": "warning"}
            assert troubles(replica.doctor()) == {"role": "broken"}
            raw.config_set("min-replicas-to-write", 1)
            assert troubles(store.doctor()) == {}


def test_who_gets_in(tmp_path):
    # An address that this machine doesn't have, which the dash allows: nobody else gets in meanwhile.
    with healthy(tmp_path / "data") as (store, raw):
        raw.config_set("bind", "127.0.0.1 -192.0.2.1")
        assert troubles(store.doctor()) == {}
        raw.config_set("protected-mode", "no")
        assert troubles(store.doctor()) == {"login": "broken"}
        raw.acl_setuser("default", enabled=True, passwords=["+s3cret"], reset_passwords=True, keys="*", commands=["+@all"])
        assert troubles(store.doctor()) == {}


def test_a_user_with_rights_that_no_worker_needs(tmp_path):
    with healthy(tmp_path / "data", user="") as (store, raw):
        assert troubles(store.doctor()) == {"rights": "warning"}
        assert found(store.doctor(), "rights").found == "user default is granted +@all, all keys"
    for granted, excess in (
        ("+config", "+config"),
        ("+@write", "+@write"),
        ("+@all -@dangerous", "+@all"),
        ("~*", "all keys"),
    ):
        with healthy(tmp_path / "data", rights=f"{granted} {NEEDED} {LOOK_RIGHTS}") as (store, raw):
            assert troubles(store.doctor()) == {"rights": "warning"}
            assert found(store.doctor(), "rights").found == f"user sessions is granted {excess}"
            raw.close()


def test_keys_that_are_not_as_they_should_be(make_store, raw, namespace):
    keys = Keys(namespace)
    store = make_store(session_max_age_ms=5_400_000)
    before = troubles(store.doctor())
    assert not {"no-ttl", "max-age", "values", "leases", "counters"} & set(before)
    raw.set(keys.session_id("immortal"), "ID-1")
    raw.set(keys.session_id("older"), "ID-1", px=DAY_MS)
    raw.set(keys.session_id("oldest"), "ID-1", px=DAY_MS)
    poison = plant_poison(raw, namespace)
    raw.set(keys.lease("stuck"), "a:1:b")
    raw.set(keys.counter("resumes_total"), "many")
    diagnosis = store.doctor()
    planted = {"no-ttl": "broken", "max-age": "warning", "values": "warning", "leases": "warning", "counters": "broken"}
    assert troubles(diagnosis) == before | planted
    assert found(diagnosis, "max-age").found == "2 sessions have more than 90m left"
    assert found(diagnosis, "values").found == f"{poison} keys hold no session ID, {poison} of them for ever"
    assert f"--namespace {namespace} --max-age 90m" in found(diagnosis, "no-ttl").remedy

    store.retime()
    for key in (*raw.scan_iter(f"{namespace}:id:*"), keys.lease("stuck")):
        if raw.pttl(key) == -1:
            raw.delete(key)
    raw.set(keys.counter("resumes_total"), 7, px=DAY_MS)
    assert troubles(store.doctor()) == before | {"counters": "warning"}
    assert found(store.doctor(), "counters").remedy == f"redis-cli PERSIST {namespace}:counter:resumes_total"
    raw.delete(keys.counter("resumes_total"))
    raw.lpush(keys.counter("resumes_total"), 1)
    assert troubles(store.doctor()) == before | {"counters": "broken"}


def test_fakeredis_has_much_that_can_not_be_seen(places):
    diagnosis = places.get("fakeredis").sync(StoreSettings()).doctor()
    unknown = [*CHECKS[:9], "login", "replay"]
    assert troubles(diagnosis) == dict.fromkeys(unknown, "unknown") | {"rights": "warning", "client": "unknown"}


def test_a_cluster(places, namespace):
    """Its nodes keep no data, and let the default user in."""
    place = places.get("cluster")
    with place.sync(StoreSettings(namespace=namespace)) as store:
        expected = {"append-only": "broken", "rights": "warning"}
        assert troubles(store.doctor()) == expected
        assert found(store.doctor(), "cluster").found == "every slot is served"
        one, other, *_ = place.raw.get_primaries()
        place.raw.execute_command("CONFIG SET", "appendonly", "yes", target_nodes=one)
        other_id = place.raw.execute_command("CLUSTER MYID", target_nodes=other)
        slot = next(slot for slot in range(16_384) if place.raw.nodes_manager.get_node_from_slot(slot) == one)
        place.raw.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", other_id, target_nodes=one)
        try:
            diagnosis = store.doctor()
            expected |= {"cluster": "warning", "no-ttl": "unknown", "max-age": "unknown", "values": "unknown"}
            assert troubles(diagnosis) == expected
            assert found(diagnosis, "append-only").found.endswith("(on 2 of 3 primaries)")
            assert found(diagnosis, "cluster").found.endswith("(on 1 of 3 primaries)")
        finally:
            place.raw.execute_command("CLUSTER SETSLOT", slot, "STABLE", target_nodes=one)
            place.raw.execute_command("CONFIG SET", "appendonly", "no", target_nodes=one)


def test_a_cluster_with_a_slot_that_nobody_serves(tmp_path):
    with healthy(tmp_path / "data", cluster_enabled="yes") as (store, raw):
        raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        url = f"redis+cluster://sessions:s3cret%2Fx@127.0.0.1:{raw.get_connection_kwargs()['port']}"
        raw.acl_setuser("sessions", enabled=True, commands=["+cluster|slots", "+cluster|nodes", "+command", "+asking"])
        with SessionStore.from_url(url, StoreSettings(deadline_ms=1_200)) as clustered:
            assert troubles(clustered.doctor()) == {}
            raw.execute_command("CLUSTER DELSLOTS", 16_383)
            diagnosis = clustered.doctor()
            keys = ("no-ttl", "max-age", "values", "leases", "counters")
            assert troubles(diagnosis) == {"cluster": "broken"} | dict.fromkeys(keys, "unknown")
            assert found(diagnosis, "cluster").found == "state fail, 16,383 of 16,384 slots served"
        raw.execute_command("CLUSTER ADDSLOTS", 16_383)
        wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        assert troubles(store.doctor()) == {"cluster": "broken"}
        assert "redis+cluster://" in found(store.doctor(), "cluster").remedy


def test_what_may_not_be_looked_at_is_unknown_and_never_ok(tmp_path):
    with healthy(tmp_path / "data", rights=NEEDED) as (store, _):
        diagnosis = store.doctor()
        unseen = [*CHECKS[:9], "login", "replay", "rights", "tls", "no-ttl", "max-age", "values"]
        assert troubles(diagnosis) == dict.fromkeys(unseen, "unknown")
        assert "does not grant" in found(diagnosis, "memory").found
        assert LOOK_RIGHTS in found(diagnosis, "memory").remedy
    with healthy(tmp_path / "data", rights=f"+get +ping +select {LOOK_RIGHTS}") as (store, _):
        unseen = ["round-trip", "clock", "no-ttl", "max-age", "values", "leases", "counters"]
        assert troubles(store.doctor()) == dict.fromkeys(unseen, "unknown")
    with healthy(tmp_path / "data", rights=LOOK_RIGHTS) as (store, _), pytest.raises(StoreUnavailable):
        store.doctor()


def test_a_clock_that_is_wrong(tmp_path):
    with healthy(tmp_path / "data") as (store, _):
        for hours in (-1, 1):
            with time_machine.travel(time.time() + hours * 3_600, tick=True):
                diagnosis = store.doctor()
            assert troubles(diagnosis) == {"clock": "warning"}
            assert ("ahead of" if hours > 0 else "behind") in found(diagnosis, "clock").found


def test_a_client_that_was_passed_in(tmp_path):
    with healthy(tmp_path / "data") as (store, _):
        url = f"redis://sessions:s3cret%2Fx@127.0.0.1:{store.client.get_connection_kwargs()['port']}"
        with SessionStore(redis.Redis.from_url(url)) as other:
            assert troubles(other.doctor()) == {"client": "warning"}
            assert "another's session ID" in found(other.doctor(), "client").found


@pytest.mark.parametrize(
    ("agent", "max_age_ms", "status"),
    [
        (None, DAY_MS, "ok"),
        (None, 31 * DAY_MS, "warning"),
        ("claude", 30 * DAY_MS, "ok"),
        ("gemini", 30 * DAY_MS + 1, "warning"),
        ("agentcore", 900_000, "ok"),
        ("agentcore", 900_001, "broken"),
        ("codex", DAY_MS, "unknown"),
    ],
)
def test_the_age_that_the_agent_minds(valkey, namespace, agent, max_age_ms, status):
    with valkey.sync(StoreSettings(namespace=namespace, session_max_age_ms=max_age_ms)) as store:
        assert found(store.doctor(agent), "agent").status == status
        with pytest.raises(InvalidSettings, match=r"name one of agentcore, .*claude"):
            store.doctor("nobody")


@pytest.mark.parametrize(
    ("info", "status"),
    [
        ({"redis_version": "6.0.16"}, "broken"),
        ({"redis_version": "6.2.14"}, "ok"),
        ({"redis_version": "8.6.2"}, "ok"),
        ({"redis_version": "9.0.0"}, "warning"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "warning"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.1"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "10.0.0"}, "warning"),
    ],
)
def test_versions(info, status):
    _, look = NODE_CHECKS["server"]
    assert look(Node(info, {}))[0] == status


@pytest.mark.parametrize(
    ("address", "place"),
    [
        *(("127.0.0.1:6379", "here"), ("[::1]:6379", "here"), ("::1:6379", "here"), ("/run/redis.sock:0", "here")),
        *(("10.0.0.9:6379", "private"), ("[fe80::1%eth0]:6379", "private"), ("172.18.0.2:6379", "private")),
        *(("8.8.8.8:6379", "open"), ("[2606:4700::1]:1", "open"), ("*:6379", "open"), ("0.0.0.0:1", "private")),
    ],
)
def test_where_an_address_is(address, place):
    assert place_of(address) == place


def test_what_was_granted_and_taken_back_is_not_granted():
    for commands, status in (("+@all -@all +get", "ok"), ("-@all +config -config", "ok"), ("-@all +keys", "warning")):
        assert rights("u", {"commands": commands, "keys": ["~sessions:*"]}, "sessions", clustered=False)[0] == status
    assert rights("u", {"commands": "+get", "keys": ["*"]}, "sessions", clustered=False)[0] == "warning"


def test_who_gets_in_from_elsewhere_and_who_reads_on_the_way():
    nobody = Node(SessionStoreError("unseen"), {})
    open_to_all = {"flags": ["on", "nopass"]}
    assert login(open_to_all, "10.0.0.9:6379", nobody)[0] == "warning"
    assert login(open_to_all, "8.8.8.8:6379", nobody)[0] == "broken"
    assert login({"flags": ["off", "nopass"]}, "8.8.8.8:6379", nobody)[0] == "ok"
    assert tls(used=False, address="10.0.0.9:6379")[0] == "warning"
    assert tls(used=True, address="10.0.0.9:6379")[0] == tls(used=False, address="/run/redis.sock:0")[0] == "ok"


def test_sentinels_that_see_no_quorum():
    away, denied = StoreUnavailable("away"), SessionStoreError("h refused a command (NOQUORUM)")
    for quorums, status in (([True, True], "ok"), ([True, away], "warning"), ([away, denied], "broken")):
        assert upkeep.quorum(quorums)[0] == status
    with pytest.raises(StoreUnavailable):
        upkeep.quorum([away, away])


@pytest.fixture
def sentinel(tmp_path):
    """A Sentinel that watches a server in two ways: alone it is enough for the one, and not for the other."""
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer() as server, socket.socket() as taken:
        # Nobody takes the port of a socket that is bound; only one that listens is in the way of another.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        watched = [f"sentinel monitor {name} 127.0.0.1 {server.port} {votes}" for name, votes in (("enough", 1), ("few", 2))]
        lines = [f"port {taken.getsockname()[1]}", "bind 127.0.0.1", f"dir {tmp_path}", *watched]
        (tmp_path / "sentinel.conf").write_text("\n".join(lines) + "\n")
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([binary, tmp_path / "sentinel.conf", "--sentinel"], stdout=log, stderr=log)
        try:
            wait_until(lambda: (tmp_path / "log").read_text().count("+monitor master") == 2, "Sentinel watches")
            yield f"127.0.0.1:{taken.getsockname()[1]}"
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_behind_sentinel(sentinel, kind, loop):
    def look(hosts, service):
        store = kind.from_url(f"redis+sentinel://{hosts}/{service}")
        store = store if kind is SessionStore else Blocking(store, loop)
        try:
            return found(store.doctor(), "sentinel")
        finally:
            store.close()

    assert look(sentinel, "enough").found == "1 of 1 see a quorum"
    assert look(sentinel, "few").status == "broken"
    assert look(f"{sentinel},127.0.0.1:1", "enough").found == "1 of 2 can't be reached"


def test_slow_round_trips_and_clients_of_which_nothing_is_known():
    assert [upkeep.round_trip(trip_ms)[0] for trip_ms in (0.2, 49.9, 50)] == ["ok", "ok", "warning"]
    with pytest.raises(SessionStoreError):
        upkeep.client(Connection())


@pytest.mark.parametrize("age_ms", [1, 999, 1_000, 90_000, 5_400_000, DAY_MS, 2 * DAY_MS, 3 * DAY_MS + 1])
def test_durations_in_remedies_are_exact(age_ms):
    from redis_sessions.cli.options import duration_ms

    assert duration_ms(upkeep.written(age_ms)) == age_ms


def test_the_command(tmp_path):
    with healthy(tmp_path / "data", maxmemory_policy="allkeys-lru") as (_, raw):
        port = raw.get_connection_kwargs()["port"]
        url = ["--url", f"redis://sessions:s3cret%2Fx@127.0.0.1:{port}"]
        shown = run("doctor", *url, code=exits.PARTLY)
        assert shown.stderr == ""
        lines = shown.stdout.splitlines()
        assert "broken  eviction     allkeys-lru takes counters, too" in lines
        [remedy] = [line.strip() for line in lines if line.strip().startswith("mend: ")]
        assert remedy == "mend: redis-cli CONFIG SET maxmemory-policy volatile-ttl"
        assert lines[-1] == f"1 broken, 0 warnings, 0 unknown, {len(CHECKS) - 1} ok"
        result = json.loads(run("doctor", "--json", *url, code=exits.PARTLY).stdout)
        assert list(result) == ["findings", "broken", "warnings", "unknown", "ok"]
        assert [finding["check"] for finding in result["findings"]] == CHECKS
        assert {tuple(finding) for finding in result["findings"]} == {("check", "status", "found", "why", "remedy")}
        raw.config_set("maxmemory-policy", "volatile-ttl")
        shown = run("doctor", "--agent", "agentcore", "--max-age", "15m", *url)
        assert re.search(r"^ok +agent +max age 15m; agentcore keeps a session 15m$", shown.stdout, re.MULTILINE)
        raw.config_set("maxmemory-policy", "volatile-lru")
        assert run("doctor", *url).stdout.endswith(f"0 broken, 1 warning, 0 unknown, {len(CHECKS) - 1} ok\n")


def test_no_secret_is_shown(tmp_path):
    """Not the passwords of the server, its replicas and its users, nor their hashes."""
    secrets = {"requirepass": "s3cret/y", "masterauth": "s3cret/z", "tls_key_file_pass": "s3cret/w"}
    with EmbeddedServer(directory=tmp_path / "data", extra={n.replace("_", "-"): v for n, v in secrets.items()}) as server:
        url = server.url.replace("//", "//:s3cret%2Fy@")
        with SessionStore.from_url(url) as store:
            hashes = [str(word) for word in store.client.execute_command("ACL", "LIST")]
            said = store.doctor().model_dump_json() + run("doctor", "--url", url).output
    assert "s3cret" not in said
    digests = re.findall(r"#([0-9a-f]{64})", " ".join(hashes))
    assert digests
    assert not any(digest in said for digest in digests)
