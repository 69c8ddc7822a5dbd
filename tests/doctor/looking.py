"""A server as the doctor finds nothing wrong with it, and how its findings are read. No tests."""

from __future__ import annotations

from contextlib import contextmanager

import redis

from redis_sessions import SessionStore
from redis_sessions.acl import USERS
from redis_sessions.doctor.findings import LOOK_RIGHTS
from redis_sessions.server import EmbeddedServer

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
