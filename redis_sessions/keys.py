"""The key scheme, whole.

| key                                | type    | expires                | holds                                       |
| ---------------------------------- | ------- | ---------------------- | ------------------------------------------- |
| `ns:id:{key}`                      | string  | max age, from each set | the bare session ID                         |
| `ns:lease:{key}`                   | string  | lease time + 30 days   | token of the last claim; held while PTTL > 30 d |
| `ns:counter:resume_failures_total` | integer | never                  | refused resumes, an INCR counter            |
| `ns:counter:resumes_total`         | integer | never                  | turns that resumed, to read it against      |
| `ns:counter:fresh_starts_total`    | integer | never                  | turns that started fresh, likewise          |

`ns` is the namespace. The conversation key stands in braces, a hash tag, so that both keys of a conversation share a
cluster slot. In it `%`, `{`, `}` and control characters are percent-escaped and nothing else, so that people can read
it. A scanned key is ours only if escaping what was unescaped gives it back.

The lease key outlives the lease for two reasons: a worker that was stopped and wakes late can tell «nobody came after
me» from «somebody came, and went»; and `volatile-ttl` eviction, which takes what expires soonest, leaves leases alone
(with a max age beyond 30 days they would go before unused sessions).
The time of last use is not stored: idle = max age - PTTL, since every set writes a whole new TTL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from redis_sessions.errors import InvalidKey, InvalidSessionID

__all__ = ["COUNTERS", "Keys"]

MAX_KEY_BYTES: Final = 512
LEASE_GRACE_MS: Final = 30 * 86_400_000
RESUME_FAILURES: Final = "resume_failures_total"
RESUMES: Final = "resumes_total"
FRESH_STARTS: Final = "fresh_starts_total"
COUNTERS: Final = (RESUME_FAILURES, RESUMES, FRESH_STARTS)
"""The names of the counters."""

_ESCAPED = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
SESSION_ID: Final = "[A-Za-z0-9][A-Za-z0-9._:-]{0,255}"
_SESSION_ID = re.compile(SESSION_ID.encode())
_SESSION_IDS = re.compile(rb"(?:%b\n)*" % _SESSION_ID.pattern)
# Of a key that is ours whatever it is: nothing in it is escaped, and its characters are bytes.
_PLAIN = rb"[^%{}\x00-\x1f\x7f-\xff]{1,512}"
MAX_SESSION_ID_BYTES: Final = 256


class Keys:
    """Names of the Redis keys of one namespace, and back: `Keys("sessions").session_id("chat:7")`.

    Attributes:
        prefix: what the names of all session keys begin with, as a scan needs it.
        lease_prefix: what those of all leases begin with.
    """

    def __init__(self, namespace: str) -> None:
        self._id_prefix = f"{namespace}:id:{{"
        self._lease_prefix = f"{namespace}:lease:{{"
        self._counter_prefix = f"{namespace}:counter:"
        self._id_prefix_bytes = self._id_prefix.encode()
        self._plain_keys = re.compile(rb"(?:%b%b\}\n)*" % (re.escape(self._id_prefix_bytes), _PLAIN))
        self.prefix: Final = self._id_prefix_bytes
        self.lease_prefix: Final = self._lease_prefix.encode()

    def session_id(self, key: str) -> bytes:
        """The Redis key that holds the session ID of conversation `key`. Raises InvalidKey."""
        return f"{self._id_prefix}{escape(key)}}}".encode()

    def lease(self, key: str) -> bytes:
        """The Redis key of the lease of conversation `key`. Raises InvalidKey."""
        return f"{self._lease_prefix}{escape(key)}}}".encode()

    def counter(self, name: str) -> bytes:
        """The Redis key of counter `name`, one of COUNTERS."""
        return f"{self._counter_prefix}{name}".encode()

    def conversation(self, redis_key: bytes) -> str | None:
        """The conversation key that a scanned `ns:id:{…}` key stands for; None if it is none of ours."""
        prefix = self._id_prefix_bytes
        if not (redis_key.startswith(prefix) and redis_key.endswith(b"}")):
            return None
        escaped = redis_key[len(prefix) : -1]
        try:
            key = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), escaped).decode()
            return key if escape(key).encode() == escaped else None
        except (UnicodeDecodeError, InvalidKey):
            return None

    def are_plain(self, redis_keys: Sequence[bytes]) -> bool:
        """Whether all are `ns:id:{…}` keys of printable ASCII with nothing escaped, and so ours."""
        lines = b"\n".join(redis_keys) + b"\n"
        return lines.count(b"\n") == len(redis_keys) and self._plain_keys.fullmatch(lines) is not None

    def conversations(self, redis_keys: Sequence[bytes]) -> list[str | None]:
        """Same as `conversation` of each."""
        if self.are_plain(redis_keys):
            start = len(self._id_prefix_bytes)
            return [redis_key[start:-1].decode("ascii") for redis_key in redis_keys]
        return [self.conversation(redis_key) for redis_key in redis_keys]


def escape(key: str) -> str:
    """A conversation key as it stands between the braces.

    Raises:
        InvalidKey: not 1 to 512 bytes of UTF-8.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a conversation key is text, not {type(key).__name__}", remedy="pass a str")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"conversation key {key!r} is no valid text", remedy="write it in UTF-8") from None
    if not 1 <= size_bytes <= MAX_KEY_BYTES:
        raise InvalidKey(
            f"conversation key {key[:40]!r} has {size_bytes} bytes", remedy=f"use 1 to {MAX_KEY_BYTES} bytes of UTF-8"
        )
    return _ESCAPED.sub(_percent, key)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def is_session_id(raw: bytes) -> bool:
    """Whether these bytes can be a session ID: no flag, no white space, at most 256 of them."""
    return _SESSION_ID.fullmatch(raw) is not None


def are_session_ids(values: Sequence[bytes | None]) -> bool:
    """Whether all of these can be session IDs; None can't."""
    try:
        lines = b"\n".join(values) + b"\n"  # type: ignore[arg-type]
    except TypeError:
        return False
    return lines.count(b"\n") == len(values) and _SESSION_IDS.fullmatch(lines) is not None


def check_session_id(key: str, session_id: str) -> bytes:
    """A caller's session ID as bytes for the wire.

    Raises:
        InvalidSessionID: it is none; the error names `key`.
    """
    if isinstance(session_id, str):
        # "replace" maps what UTF-8 can't hold to "?", which no session ID may contain.
        raw = session_id.encode("utf-8", "replace")
        if _SESSION_ID.fullmatch(raw):
            return raw
    raise InvalidSessionID(
        f"{str(session_id)[:60]!r} can't be the session ID of conversation {key!r}",
        key=key,
        remedy="give 1 to 256 of A-Z a-z 0-9 . _ : - that start with a letter or digit",
    )
