"""Every grant in the ACL file is needed, on a single server and on a cluster."""

from __future__ import annotations

import pytest
import redis
from redis.crc import key_slot

from redis_sessions import (
    AccessDenied,
    AsyncSessionStore,
    InexactScan,
    SessionStore,
    StoreSettings,
)
from redis_sessions.keys import Keys
from redis_sessions.operations.acl import USERS
from tests.acl.work import WORK, without
from tests.servers import is_redis_6
from tests.stores import PATIENT, Blocking


@pytest.mark.usefixtures("_checks_its_health")
@pytest.mark.parametrize("user", USERS)
def test_every_grant_is_needed(guarded, user, tmp_path):
    for grant in (None, *sorted(USERS[user].commands | USERS[user].alone)):
        if grant == "eval_ro" and is_redis_6(guarded.server.binary):
            continue
        guarded.raw.flushall()
        guarded.raw.script_flush()
        with SessionStore.from_url(guarded.url("admin"), PATIENT) as admin:
            admin.set("a", "ID-1")
        with SessionStore.from_url(guarded.url(user), PATIENT) as store:
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


@pytest.mark.usefixtures("_checks_its_health")
@pytest.mark.parametrize("user", USERS)
def test_every_grant_is_needed_on_a_cluster(places, namespace, user, tmp_path):
    place = places.get("cluster-acl")
    place.set_users(namespace)
    settings = PATIENT.model_copy(update={"namespace": namespace})
    everywhere = {"target_nodes": redis.RedisCluster.ALL_NODES}
    for grant in (None, *sorted((USERS[user].on_cluster | {"eval"} & USERS[user].commands) - {"asking"})):
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


def test_a_slot_that_is_being_migrated(places, namespace):
    """While a slot is migrated, a key that has moved already is asked for at the other node, with ASKING."""
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
