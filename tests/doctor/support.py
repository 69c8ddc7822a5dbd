"""A server with which the doctor finds no fault, and ways to run single checks and to read findings. No tests."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import redis

from redis_sessions import SessionStore, StoreSettings
from redis_sessions.doctor import connection
from redis_sessions.doctor.findings import LOOK_RIGHTS, ClientFacts
from redis_sessions.doctor.server import Examination, Server
from redis_sessions.keys import Keys
from redis_sessions.operations.acl import USERS
from redis_sessions.server import EmbeddedServer
from tests.stores import PATIENT

ADMIN = USERS["admin"]
LOOK = LOOK_RIGHTS.split()
KEYS = Keys(StoreSettings().namespace)
NEEDED = " ".join(f"+{word}" for word in ADMIN.commands | ADMIN.alone | ADMIN.on_cluster if f"+{word}" not in LOOK)
CHECKS = [
    *("server", "role", "cluster", "eviction", "memory", "append-only", "appendfsync", "disk", "replicas"),
    *("commands", "login", "replay", "rights", "tls", "round-trip", "clock", "client"),
    *("no-ttl", "max-age", "values", "names", "leases", "counters", "agent"),
]


def replies(info=None, handle=None, **settings):
    """A server that has answered INFO and CONFIG GET already, and can be asked nothing else."""
    answers = {("CONFIG", "GET", name): {name: value} for name, value in settings.items()}
    return Server(KEYS, handle, answers | {("INFO",): {} if info is None else info})


def about(server=None, *, client=ClientFacts(), **facts):  # noqa: B008 - a constant
    return Examination(server or Server(KEYS), StoreSettings(), client, **facts)


def finding_of(check, subject):
    """The finding of a check whose questions have all been answered before."""
    finding = check.finding(subject)
    try:
        asked = next(finding)
    except StopIteration as done:
        return done.value
    raise AssertionError(f"{check.name} asks {asked}")


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
    # A slow reply is the machine's here: test_slow_round_trips is about that.
    with server, redis.Redis.from_url(server.url) as raw, patch.object(connection, "SLOW_MS", 5_000):
        raw.execute_command("ACL", "SETUSER", "sessions", "on", ">s3cret/x", "~sessions:*", "-@all", *rights.split())
        login = f"{user}:s3cret%2Fx@" if user else ""
        with SessionStore.from_url(server.url.replace("//", f"//{login}"), PATIENT) as store:
            yield store, raw
