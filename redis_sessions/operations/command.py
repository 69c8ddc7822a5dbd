"""What an operation may ask of Redis.

An operation is a generator. It yields a list of Commands, which are sent in one round trip; it is sent back the list of
their replies (bytes, integers, None, and lists of these); and it returns its result, or raises. It has no client and awaits
nothing, so the same generator serves both flavors: `run` and `arun` of `client/execute.py` send what it yields, and decide
what is sent again and which error a failure becomes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Batch: TypeAlias = Sequence[tuple[bytes | str, ...]]
Op: TypeAlias = Generator[list["Command"], list[Any], T]


class Script:
    """A Lua script and its SHA-1, by which EVALSHA calls it."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.sha: Final = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def batch(self, redis_keys: Sequence[tuple[bytes, ...]], *args: bytes | str) -> Batch:
        """A call for each of these KEYS. The first brings the source, so that the server knows the script from then on."""
        calls: list[tuple[bytes | str, ...]] = [("EVALSHA", self.sha, str(len(some)), *some, *args) for some in redis_keys]
        calls[0] = ("EVAL", self.source, *calls[0][2:])
        return calls


class Command(NamedTuple):
    """One command, and what the client must know to send it."""

    # Name and arguments; of a script, its arguments alone. No integers: a signal handler that raises while hiredis renders
    # one crashes the process. No upstream issue found.
    args: tuple[bytes | str, ...]
    key: str | None = None  # the conversation it is about, for errors to name
    script: Script | None = None
    redis_keys: tuple[bytes, ...] = ()  # the script's KEYS
    resend: bool = True  # whether it may run twice, so that it can be sent again when its reply was lost
    tell_again: bool = False  # whether the client appends an argument: 1 if an earlier sending may have run, else 0
    again: bool = False  # whether one may have run before this operation began
    node: object = None  # the cluster primary to send it to, as PRIMARIES gave it; None lets its key decide
    optional: bool = False  # if the server refuses it, the error (a SessionStoreError) is its reply instead of being raised
    even_away: bool = False  # of an optional one, the same if the server can't be reached
    # Another command, to send behind it on the same connection. Both replies are its reply then; if the server refuses the
    # second, the error (a SessionStoreError) is in the place of that reply.
    followed_by: tuple[bytes | str, ...] = ()
    # What to do while the server works on it. It may be called several times, or where the client can't do so, never; and it
    # must raise no Exception, which would be taken for the connection's.
    meanwhile: Callable[[], None] | None = None
    # Commands to send instead, to that node. The list of their replies is its reply; if the server refuses one, the error (a
    # SessionStoreError) is in its place.
    batch: Batch = ()


class Resent(list[Any]):
    """Replies to commands that were sent more than once: an earlier sending may have been carried out too."""


# Answered by the client, not by the server. The reply to the first is a list of node handles, [None] where there is only one
# server; that to the second whether this is an emulation inside this process (fakeredis), which has no INFO.
PRIMARIES: Final = Command(("PRIMARIES",))
EMULATED: Final = Command(("EMULATED",))
