"""All that each user needs to do, and how a grant is revoked. No tests."""

from __future__ import annotations

import json

from redis_sessions import (
    AccessDenied,
    InexactScan,
    Lease,
    Turn,
)
from tests.servers import is_redis_6


def converse(store, _):
    """All that a worker does, whether or not the server has cached the scripts."""
    store.set("a", "ID-1")
    store.get("a")
    store.peek("a")
    for step in (store.renew, store.reject, store.fail, store.release):
        lease = store.acquire("a")
        assert isinstance(lease, Lease)
        store.acquire("a")
        step(lease)
        store.release(lease)
    store.set("a", "ID-1")
    store.fail(store.acquire("a"))
    store.save(store.acquire("a"), "ID-1")
    store.acquire("a")
    assert store.break_lease("a")
    store.delete("a", "ID-1")
    store.delete("a")
    store.increment_resume_failures()
    store.resume_failures_total()
    assert store.resume("a", lambda _: Turn("ID-1", None), on_outage="raise").saved


def scan(store, tmp_path):
    sizes = []
    report = store.report(lambda _, about: sizes.append(about))
    assert report.live == 1
    if report.approximate or not max(sizes):
        raise InexactScan("the report is approximate, or has no progress", remedy="grant what it needs")
    assert list(store.leases()) == []
    assert [row.key for row in store.sessions()] == ["a"]
    assert store.live_session_ids() == {"ID-1"}
    assert store.export(tmp_path / "out.json").exported == 1
    store.resume_failures_total()
    assert store.peek("a").session_id == "ID-1"
    if store._run(store._ops.max_age_ms()) is None:  # what is optional to know is not raised
        raise AccessDenied("the namespace's max age is not seen", remedy="grant it")


def move(store, tmp_path):
    converse(store, tmp_path)
    scan(store, tmp_path)
    (tmp_path / "in.json").write_text(json.dumps({"a": "ID-2", "b": "ID-3"}))
    for dry_run in (True, False):
        result = store.import_legacy(tmp_path / "in.json", assume_used_at="mtime", dry_run=dry_run)
        assert (result.imported, result.kept) == (1, 1)
    assert store.retime(60_000).shortened == 2
    diagnosis = store.doctor()
    unseen = {finding.check for finding in diagnosis.findings if finding.status == "unknown"}
    # The doctor raises nothing for what it may not see.
    if unseen - {"replicas", "login", "replay", "rights"}:
        raise AccessDenied(f"the doctor does not see {unseen}", remedy="grant it")


WORK = {"worker": converse, "report": scan, "admin": move}


def without(grant, binary=None):
    """The rule that revokes a grant. Not every server can revoke one subcommand of INFO, and Redis 6.2 none at all."""
    whole = grant == "info|server" or is_redis_6(binary)
    return f"-{grant.partition('|')[0] if whole else grant}"
