"""The doctor's checks of logins, permissions and TLS."""

from __future__ import annotations

import re

import pytest
import redis

from redis_sessions import SessionStore
from redis_sessions.doctor.connection import login, place_of, replay, rights, tls
from redis_sessions.doctor.findings import LOOK_RIGHTS, ClientFacts
from redis_sessions.errors import SessionStoreError
from redis_sessions.server import EmbeddedServer
from tests.doctor.support import NEEDED, about, finding_of, found, healthy, replies, troubles
from tests.servers import is_redis_6
from tests.test_cli_support import run

pytestmark = pytest.mark.plants_immortal_keys


def test_login(tmp_path):
    # An address that this machine doesn't have, as the dash allows: nobody else can log in meanwhile.
    with healthy(tmp_path / "data") as (store, raw):
        raw.config_set("bind", "127.0.0.1 -192.0.2.1")
        assert troubles(store.doctor()) == {}
        raw.config_set("protected-mode", "no")
        assert troubles(store.doctor()) == {"login": "broken"}
        raw.acl_setuser("default", enabled=True, passwords=["+s3cret"], reset_passwords=True, keys="*", commands=["+@all"])
        assert troubles(store.doctor()) == {}


def test_nobody_reaches_a_unix_socket_from_another_host(tmp_path_factory):
    socket = tmp_path_factory.mktemp("s") / "s"  # a socket's path must be short
    with (
        EmbeddedServer(extra={"unixsocket": str(socket)}) as server,
        redis.Redis.from_url(server.url) as raw,
        SessionStore.from_url(f"unix://{socket}") as store,
    ):
        raw.config_set("bind", "127.0.0.1 -192.0.2.1")
        raw.config_set("protected-mode", "no")
        assert found(store.doctor(), "login").status == "broken"
        raw.config_set("port", 0)
        assert found(store.doctor(), "login").found == "no password, but it listens on a unix socket only"


def test_more_permissions_than_a_worker_needs(tmp_path):
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


def test_replay_after_a_restart(binary, tmp_path):
    """Where the doctor finds nothing, a restart loses no save; its fix achieves that."""
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
def test_permissions_of_the_default_user(commands, keys, status):
    server = replies({"aof_enabled": 1, "redis_version": "7.4.1"})
    server.answers["ACL", "GETUSER", "default"] = {"flags": ["on"], "commands": commands, "keys": keys}
    assert finding_of(replay, about(server)).status == status


@pytest.mark.parametrize(
    ("address", "place"),
    [
        *(("127.0.0.1:6379", "here"), ("[::1]:6379", "here"), ("::1:6379", "here"), ("/run/redis.sock:0", "here")),
        *(("10.0.0.9:6379", "private"), ("[fe80::1%eth0]:6379", "private"), ("172.18.0.2:6379", "private")),
        *(("8.8.8.8:6379", "open"), ("[2606:4700::1]:1", "open"), ("*:6379", "open"), ("0.0.0.0:1", "private")),
    ],
)
def test_place_of_an_address(address, place):
    assert place_of(address) == place


@pytest.mark.parametrize(
    ("commands", "keys", "status"),
    [
        ("+@all -@all +get", "~sessions:*", "ok"),
        ("-@all +config -config", "~sessions:*", "ok"),
        ("-@all +keys", "~sessions:*", "warning"),
        ("+get", "*", "warning"),
    ],
)
def test_revoked_permissions_do_not_count(commands, keys, status):
    server = replies()
    server.answers |= {
        ("CLIENT", "INFO"): "id=1 user=u",
        ("ACL", "GETUSER", "u"): {"flags": ["on"], "commands": commands, "keys": [keys]},
    }
    assert finding_of(rights, about(server)).status == status


def test_permissions_by_selector(tmp_path, binary):
    if is_redis_6(binary):
        pytest.skip("it has no selectors")
    with healthy(tmp_path / "data", binary=binary) as (store, raw):
        raw.execute_command("ACL", "SETUSER", "sessions", "(+@all ~*)")
        assert found(store.doctor(), "rights").found == "user sessions is granted +@all, all keys"


@pytest.mark.parametrize(
    ("flag", "address", "status"),
    [
        ("on", "10.0.0.9:6379", "warning"),
        ("on", "8.8.8.8:6379", "broken"),
        ("off", "8.8.8.8:6379", "ok"),
    ],
)
def test_login_from_other_machines(flag, address, status):
    server = replies(SessionStoreError("unseen"))
    user = {"flags": [flag, "nopass"], "commands": "+@all", "keys": "~*"}
    server.answers |= {("CLIENT", "INFO"): f"laddr={address}", ("ACL", "GETUSER", "default"): user}
    assert finding_of(login, about(server)).status == status


@pytest.mark.parametrize(
    ("used", "address", "status"),
    [(False, "10.0.0.9:6379", "warning"), (True, "10.0.0.9:6379", "ok"), (False, "/run/redis.sock:0", "ok")],
)
def test_tls(used, address, status):
    server = replies()
    server.answers["CLIENT", "INFO"] = f"laddr={address}"
    assert finding_of(tls, about(server, client=ClientFacts(tls=used))).status == status


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
