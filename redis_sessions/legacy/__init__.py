"""sessions.json, and other tools' files: reading, importing and writing them.

A sessions.json is one JSON object from conversation key to session ID, bare or in a record; the two may be mixed:

    {"acme/shop#42": "id", "acme/shop#43": {"id": "id", "last_used_at": 1732250000000}}

A Shape says where another file has them: `store.import_legacy(path, shape=Shape(entries="sessions", id_fields=("uuid",)))`.
`known_shapes()` are those of some tools, which `shape` takes by name.

Each entry has an outcome: imported, expired, kept or rejected; `redis-sessions docs moving` lists when. If the file is
not JSON, not UTF-8, or of another shape, LegacyFileError is raised and nothing of it is imported.
"""

from redis_sessions.legacy.file import session_ids
from redis_sessions.legacy.shape import Shape, known_shapes

__all__ = ["Shape", "known_shapes", "session_ids"]
