"""The key scheme: every key in Redis, its type, its expiry and what it holds.

| key | type | expires | holds |
| --- | --- | --- | --- |
| `ns:id:{key}` | string | after the max age; each set starts a new TTL | the bare session ID |
| `ns:record:{key}` | hash | max age after a save with a lease | what is known of the session: see below |
| `ns:lease:{key}` | string | after the lease time + 30 days | the token of the last claim; held while PTTL > 30 days |
| `ns:counter:resume_failures_total` | integer | never | number of refused resumes |
| `ns:counter:resumes_total` | integer | never | number of turns that resumed |
| `ns:counter:fresh_starts_total` | integer | never | number of turns that started fresh |
| `ns:counter:gave_up_total` | integer | never | number of those that did because of earlier failures |
| `ns:counter:rotations_total` | integer | never | number of those that did because the session had reached a limit |
| `ns:settings` | hash | never | `max_age_ms`: the max age, written with a store's first save or import unless it is there |

`ns` is the namespace. The conversation key stands in braces, which make it a hash tag: all keys of a conversation share a
cluster slot. Only `%`, `{`, `}` and control characters in it are percent-escaped, so that people can read it. A scanned key
belongs to the scheme only if unescaping it and escaping it again gives the same key.

Idle time = max age - PTTL, because every save writes a whole new TTL; after the max age was lowered, that is too short for a
session whose TTL was shortened. The record says it right: `s` + `u` + what the ID has more to live than the record, since a
save without a lease gives only the ID a new TTL.

The record may be absent, and counts only while its `id` is the ID in `ns:id:{key}`: a plain SET of the ID, by any program,
leaves it behind without harm. Only what is known, and not what is usual, is in it. Its names and values are short, because a
record would otherwise take more memory than everything else of a session:

| field | holds |
| --- | --- |
| `id` | the session ID that it is about |
| `w` | agent, host and agent home, separated by NUL; what follows the last one that is known is left out |
| `d` | working directory; one that begins as the home does is `12:rest`: 12 characters of the home, then the rest |
| `s` | when the session's first turn was saved, by the server's clock, milliseconds since 1970 |
| `u` | how long after that its last turn was saved, in milliseconds |
| `t` | number of turns that were saved |
| `c` | size of the context after the last turn, in tokens |
| `f` | undecided failures to resume it, in a row |
| `i` | 1 if its last turn was cut short |

The lease key outlives the lease for two reasons. A worker that was stopped and wakes late can tell "nobody came after me"
from "somebody came and went". And `volatile-ttl` eviction, which removes the keys that expire soonest, spares leases (but
with a max age of more than 30 days, a lease may expire before an unused session does).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from redis_sessions.errors import InvalidKey, InvalidSessionID

__all__ = ["COUNTERS", "Keys"]

MAX_KEY_BYTES: Final = 512
LEASE_GRACE_MS: Final = 30 * 86_400_000
RESUME_FAILURES: Final = "resume_failures_total"
RESUMES: Final = "resumes_total"
FRESH_STARTS: Final = "fresh_starts_total"
GAVE_UP: Final = "gave_up_total"
ROTATIONS: Final = "rotations_total"
COUNTERS: Final = (RESUME_FAILURES, RESUMES, FRESH_STARTS, GAVE_UP, ROTATIONS)
"""The names of the counters."""

RECORD_FIELDS: Final = ("id", "w", "d", "s", "u", "t", "c", "f", "i")
"""The fields of a record, in the order in which `Record.read` takes their values."""

PROBES: Final = tuple(f"{number} is a probe for proxies" for number in range(32))
"""Conversations that nobody has: a proxy that spreads keys over servers sends some of so many to another.

They differ at the front, since what follows spreads the difference: twemproxy's fnv1a hashes of keys that differ at the end
are close together, and choose the same server.
"""

_ESCAPED = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
SESSION_ID: Final = "[A-Za-z0-9][A-Za-z0-9._:-]{0,255}"
_SESSION_ID = re.compile(SESSION_ID.encode())
# Many at once, one a line: a tenth of the time of a match for each.
_SESSION_IDS = re.compile(rb"(?:%b\n)*" % _SESSION_ID.pattern)
# Many conversation keys at once, one a line, in which nothing has to be escaped.
_UNESCAPED = re.compile(r"(?:[^%{}\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}\n)*")
# A key of printable ASCII with nothing escaped, which belongs to the scheme without a closer look.
_PLAIN = rb"[^%{}\x00-\x1f\x7f-\xff]{1,512}"


class Keys:
    """Names of the Redis keys of one namespace, and back: `Keys("sessions").session_id("chat:7")`.

    Attributes:
        prefix: of the names of all session keys, for a scan.
        record_prefix: of the names of all records.
        lease_prefix: of the names of all lease keys.
    """

    def __init__(self, namespace: str) -> None:
        self._id_prefix = f"{namespace}:id:{{"
        self._record_prefix = f"{namespace}:record:{{"
        self._lease_prefix = f"{namespace}:lease:{{"
        self._counter_prefix = f"{namespace}:counter:"
        self._settings = f"{namespace}:settings".encode()
        self.prefix: Final = self._id_prefix.encode()
        self.record_prefix: Final = self._record_prefix.encode()
        self.lease_prefix: Final = self._lease_prefix.encode()
        self._plain_keys = re.compile(rb"(?:%b%b\}\n)*" % (re.escape(self.prefix), _PLAIN))

    def session_id(self, key: str) -> bytes:
        """The Redis key that holds the session ID of conversation `key`. Raises InvalidKey, TypeError."""
        return f"{self._id_prefix}{escape(key)}}}".encode()

    def session_ids(self, keys: Sequence[str]) -> list[bytes]:
        """Same as `session_id` of each, faster where all are short and nothing in them has to be escaped.

        Raises InvalidKey, TypeError.
        """
        lines = "\n".join(keys) + "\n"
        if lines.count("\n") == len(keys) and _UNESCAPED.fullmatch(lines):
            prefix = self._id_prefix
            return [f"{prefix}{key}}}".encode() for key in keys]
        return [self.session_id(key) for key in keys]

    def record(self, key: str) -> bytes:
        """The Redis key of the record of conversation `key`'s session. Raises InvalidKey, TypeError."""
        return f"{self._record_prefix}{escape(key)}}}".encode()

    def record_of(self, redis_key: bytes) -> bytes:
        """The record that belongs to a scanned `ns:id:{…}` key."""
        return self.record_prefix + redis_key[len(self.prefix) :]

    def lease(self, key: str) -> bytes:
        """The Redis key of the lease of conversation `key`. Raises InvalidKey, TypeError."""
        return f"{self._lease_prefix}{escape(key)}}}".encode()

    def leased(self, key: str) -> tuple[bytes, ...]:
        """Lease, session ID and record of conversation `key`. Raises InvalidKey, TypeError."""
        end = f"{escape(key)}}}".encode()
        return self.lease_prefix + end, self.prefix + end, self.record_prefix + end

    def counter(self, name: str) -> bytes:
        """The Redis key of counter `name`, one of COUNTERS."""
        return f"{self._counter_prefix}{name}".encode()

    def settings(self) -> bytes:
        """The Redis key of what all workers of the namespace agree on."""
        return self._settings

    def conversation(self, redis_key: bytes) -> str | None:
        """The conversation key of a scanned `ns:id:{…}` key; None if the key doesn't belong to the scheme."""
        return self._named(self.prefix, redis_key)

    def leased_conversation(self, redis_key: bytes) -> str | None:
        """Same as `conversation`, of a `ns:lease:{…}` key."""
        return self._named(self.lease_prefix, redis_key)

    def _named(self, prefix: bytes, redis_key: bytes) -> str | None:
        if not (redis_key.startswith(prefix) and redis_key.endswith(b"}")):
            return None
        escaped = redis_key[len(prefix) : -1]
        try:
            key = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), escaped).decode()
            return key if _escaped(key).encode() == escaped else None
        except (UnicodeDecodeError, InvalidKey):
            return None

    def conversations(self, redis_keys: Sequence[bytes]) -> list[str | None]:
        """Same as `conversation` of each, faster where all are printable ASCII with nothing escaped."""
        if self.are_plain(redis_keys):
            text = b"\n".join(redis_keys)[len(self.prefix) : -1].decode("ascii")
            return list(text.split(f"}}\n{self._id_prefix}"))
        return [self.conversation(redis_key) for redis_key in redis_keys]

    def are_plain(self, redis_keys: Sequence[bytes]) -> bool:
        """Whether all are session keys of the scheme, of printable ASCII with nothing escaped."""
        lines = b"\n".join(redis_keys) + b"\n"
        return lines.count(b"\n") == len(redis_keys) and self._plain_keys.fullmatch(lines) is not None


def escape(key: str) -> str:
    """A conversation key as it stands between the braces.

    Raises TypeError if it is not a str, and InvalidKey unless it has 1 to 512 bytes of UTF-8.
    """
    if not isinstance(key, str):
        raise TypeError(f"a conversation key must be a str, not {type(key).__name__}: {_as_str(key, 'key')}")
    return _escaped(key)


@lru_cache(maxsize=256)  # a turn asks for the same one several times
def _escaped(key: str) -> str:
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"conversation key {key!r} is not valid text", remedy="use 1 to 512 bytes of UTF-8") from None
    if not 1 <= size_bytes <= MAX_KEY_BYTES:
        raise InvalidKey(
            f"conversation key {key[:40]!r} has {size_bytes} bytes", remedy=f"use 1 to {MAX_KEY_BYTES} bytes of UTF-8"
        )
    return _ESCAPED.sub(_percent, key)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _as_str(value: object, name: str) -> str:
    """What makes a str of something that isn't one."""
    if isinstance(value, bytes):
        return f"pass {name}.decode()"
    return "is the variable set that it comes from?" if value is None else f"pass str({name})"


def is_session_id(raw: bytes) -> bool:
    """Whether these bytes can be a session ID: at most 256, no white space, and not a flag (`--x`)."""
    return _SESSION_ID.fullmatch(raw) is not None


def are_session_ids(values: Sequence[bytes | None]) -> bool:
    """Whether all of these can be session IDs, which None can't."""
    try:
        lines = b"\n".join(values) + b"\n"  # type: ignore[arg-type]
    except TypeError:
        return False
    return lines.count(b"\n") == len(values) and _SESSION_IDS.fullmatch(lines) is not None


def check_session_id(key: str, session_id: str) -> bytes:
    """A caller's session ID as bytes.

    Raises TypeError if it is not a str, and InvalidSessionID, which names `key`, if it can't be one.
    """
    if not isinstance(session_id, str):
        raise TypeError(f"a session ID must be a str, not {type(session_id).__name__}: {_as_str(session_id, 'session_id')}")
    # "replace" maps what UTF-8 can't hold to "?", which no session ID may contain.
    raw = session_id.encode("utf-8", "replace")
    if _SESSION_ID.fullmatch(raw):
        return raw
    raise InvalidSessionID(
        f"{str(session_id)[:60]!r} can't be the session ID of conversation {key!r}",
        key=key,
        remedy="give 1 to 256 of A-Z a-z 0-9 . _ : - that start with a letter or digit",
    )
