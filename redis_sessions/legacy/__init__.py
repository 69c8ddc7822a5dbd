"""sessions.json: reading, importing and writing it.

A file is one JSON object from conversation key to session ID, bare or in a record; the two may be mixed:

    {"acme/shop#42": "id", "acme/shop#43": {"id": "id", "last_used_at": 1732250000000}}

| entry | outcome |
| --- | --- |
| record used within the max age | imported with its remaining TTL; kept if the conversation is live in Redis already |
| record used longer ago | expired |
| bare ID, or a record without a time | counts as last used at 0: expired, unless `assume_used_at` gives a time |
| time up to 5 minutes in the future | counts as used now |
| time further in the future, negative, fractional, not a number, or in seconds by its size | rejected |
| key that occurs more than once | each of them rejected: which one is right can't be known |
| key that is not a conversation key, ID that is not a session ID (`--x`, say), any other value | rejected |

If the file is not JSON, not UTF-8, or not an object, LegacyFileError is raised and nothing of it is imported.
"""

from redis_sessions.legacy.file import session_ids

__all__ = ["session_ids"]
