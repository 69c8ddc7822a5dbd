"""The doctor on who gets in, what they may do, and who can read it on the way."""

from __future__ import annotations

import re

import pytest
import redis

from redis_sessions import SessionStore
from redis_sessions.doctor.connection import login, place_of, replay, rights, tls
from redis_sessions.doctor.findings import LOOK_RIGHTS
from redis_sessions.doctor.server import Node
from redis_sessions.errors import SessionStoreError
from redis_sessions.server import EmbeddedServer
from tests.doctor.looking import NEEDED, found, healthy, troubles
from tests.servers import is_redis_6
from tests.test_cli_support import run

pytestmark = pytest.mark.plants_immortal_keys


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


def test_what_a_selector_grants_is_granted(tmp_path, binary):
    if is_redis_6(binary):
        pytest.skip("it has no selectors")
    with healthy(tmp_path / "data", binary=binary) as (store, raw):
        raw.execute_command("ACL", "SETUSER", "sessions", "(+@all ~*)")
        assert found(store.doctor(), "rights").found == "user sessions is granted +@all, all keys"


def test_who_gets_in_from_elsewhere_and_who_reads_on_the_way():
    nobody = Node(SessionStoreError("unseen"), {})
    open_to_all = {"flags": ["on", "nopass"]}
    assert login(open_to_all, "10.0.0.9:6379", nobody)[0] == "warning"
    assert login(open_to_all, "8.8.8.8:6379", nobody)[0] == "broken"
    assert login({"flags": ["off", "nopass"]}, "8.8.8.8:6379", nobody)[0] == "ok"
    assert tls(used=False, address="10.0.0.9:6379")[0] == "warning"
    assert tls(used=True, address="10.0.0.9:6379")[0] == tls(used=False, address="/run/redis.sock:0")[0] == "ok"


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
