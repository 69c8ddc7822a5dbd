"""A server with the users of the ACL file, and their passwords. No tests."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager

import redis

from redis_sessions.keys import Keys
from redis_sessions.operations.acl import USERS

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
        """A connection that sends any command."""
        with redis.Redis.from_url(self.url(user), driver_info=None) as client:
            connection = client.connection_pool.get_connection()

            def send(*words):
                connection.send_command(*words)
                return connection.read_response()

            try:
                yield send
            finally:
                connection.disconnect()


def commands_of(send):
    """Every command and subcommand that the server knows: its name, how few words it takes, its flags."""
    for name, arity, flags, *rest in send("COMMAND"):
        subcommands = rest[-1] if rest and isinstance(rest[-1], list) else []
        nested = [entry[:3] for entry in subcommands if isinstance(entry, list)]
        for each, words, its_flags in nested or [(name, arity, flags)]:
            yield each.decode(), abs(words), {flag.decode().lstrip("+") for flag in its_flags}
