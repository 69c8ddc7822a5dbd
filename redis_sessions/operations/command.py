"""What an operation may ask for: a Command, or several at once, which are one round trip.

An operation is a generator: it yields lists of Commands, is sent the list of their replies (bytes, integers, None,
lists of these), and returns its result. It holds no client and awaits nothing; `client/execute.py` carries it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Op: TypeAlias = Generator[list["Command"], list[Any], T]


class Script:
    """A Lua script and the SHA-1 that EVALSHA knows it by."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.sha: Final = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Command(NamedTuple):
    """One command, and what the wire must know to send it.

    Attributes:
        args: name and arguments; of a script, its arguments alone.
        key: the conversation it is about, for errors to name.
        script: the script to run, if it is one; `redis_keys` are its KEYS.
        resend: whether it may run twice, so that it can be sent again when its reply was lost.
        tell_again: whether the wire appends an argument: 1 if an earlier sending may have run, else 0.
        node: the cluster primary it is for, as PRIMARIES gave it; None lets its key decide.
        optional: a refusal by the server is its reply (a SessionStoreError) instead of being raised.
        even_away: of an optional one, so is that the server can't be reached.
    """

    args: tuple[bytes | str | int, ...]
    key: str | None = None
    script: Script | None = None
    redis_keys: tuple[bytes, ...] = ()
    resend: bool = True
    tell_again: bool = False
    node: object = None
    optional: bool = False
    even_away: bool = False


class Resent(list[Any]):
    """Replies to commands that were sent more than once: an earlier sending may have been carried out as well."""


# Asks the wire, not the server: its reply is a list of node handles, [None] where there is only one server.
PRIMARIES: Final = Command(("PRIMARIES",))
