"""sessions.json, and other tools' files: reading, importing and writing them.

A sessions.json is one JSON object from conversation key to session ID, bare or in a record; the two may be mixed:

    {"acme/shop#42": "id", "acme/shop#43": {"id": "id", "last_used_at": 1732250000000}}

A Shape says where another file has them: `store.import_legacy(path, shape=Shape(entries="sessions", id_fields=("uuid",)))`.
`known_shapes()` are those of some tools, which `shape` takes by name.

| entry | outcome |
| --- | --- |
| record used within the max age | imported with its remaining TTL; kept if the conversation is live in Redis already |
| record used longer ago | expired |
| bare ID | counts as last used at 0: expired, unless `assume_used_at` gives a time |
| record without a time | rejected, unless `assume_used_at` gives a time; the reason names the field that looks like one |
| the same in a sessions.json, and no field looks like a time | like a bare ID |
| time in seconds, milliseconds, microseconds, nanoseconds (known by its size) or ISO 8601 | that time; `times` counts each |
| time up to 5 minutes in the future | counts as used now |
| time further in the future, negative, or anything else | rejected |
| key that occurs more than once | each of them rejected: which one is right can't be known |
| key that is not a conversation key, ID that is not a session ID (`--x`, `undefined`, a date), any other value | rejected |

If the file is not JSON, not UTF-8, or of another shape, LegacyFileError is raised and nothing of it is imported.
"""

from redis_sessions.legacy.file import session_ids
from redis_sessions.legacy.shape import Shape, known_shapes

__all__ = ["Shape", "known_shapes", "session_ids"]
