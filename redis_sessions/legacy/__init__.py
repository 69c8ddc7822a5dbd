"""sessions.json in and out. No Redis.

A file is one JSON object from conversation key to session ID, bare or in a record; the two may be mixed:

    {"acme/shop#42": "id", "acme/shop#43": {"id": "id", "last_used_at": 1732250000000}}

| entry | outcome |
| --- | --- |
| record used within the max age | imported with its remaining life, or kept: what is live in Redis is not touched |
| record used longer ago | expired |
| bare ID, or a record without a time | counts as last used at 0: expired, unless `assume_used_at` gives a time |
| time up to 5 minutes ahead | taken as now |
| time further ahead, negative, fractional, no number, or one that looks like seconds | rejected |
| key that occurs more than once | rejected, each: which one is right can't be told |
| key that is no conversation key, ID that is no session ID (a leading dash, say), any other value | rejected |

A file that is no JSON, not UTF-8, or no object is a LegacyFileError, and nothing of it is written.
"""

from redis_sessions.legacy.file import session_ids

__all__ = ["session_ids"]
