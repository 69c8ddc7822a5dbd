"""The store's async flavour: the same operations, handed to the async wire. No logic lives here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, Self, TypeVar

from redis_sessions import client as clients
from redis_sessions import legacy, migrate, retime, runner, scan
from redis_sessions.base_store import BaseStore, taken_apart
from redis_sessions.commands import Op
from redis_sessions.errors import StoreUnavailable
from redis_sessions.exchange import Link
from redis_sessions.findings import Connection, Diagnosis
from redis_sessions.keys import RESUME_FAILURES
from redis_sessions.migrate import ExportResult, ImportResult
from redis_sessions.ops import Held, Lease, Peek
from redis_sessions.report import Report
from redis_sessions.resume import resume
from redis_sessions.retime import RetimeResult
from redis_sessions.scan import Progress, SessionRow
from redis_sessions.settings import StoreSettings
from redis_sessions.store import SessionStore
from redis_sessions.turn import Request, ResumeResult, Turn
from redis_sessions.verdicts import Judge, judge_by_phrase
from redis_sessions.wire import arun

T = TypeVar("T")
V = TypeVar("V")
K = TypeVar("K")


def _documented(kind: type[K]) -> type[K]:
    """Let every method say at run time all that its sync twin says, and what stands below its own first line."""
    for name, member in vars(kind).items():
        twin = None if name.startswith("_") else getattr(SessionStore, name, None)
        if twin is not None and twin.__doc__:
            method = getattr(member, "__func__", member)
            _, _, below = method.__doc__.partition("\n")
            method.__doc__ = f"{twin.__doc__.rstrip()}\n{below}"
    return kind


@_documented
class AsyncSessionStore(BaseStore[clients.AsyncClient]):
    """Session IDs of conversations in Redis, for asyncio: the methods of SessionStore, awaited, which raise the same.

    `AsyncSessionStore.from_url("redis://127.0.0.1:6379/0")` makes one; in an `async with` it closes its connections at the
    end. Such a client belongs to the event loop of its first command.

    Attributes:
        client: the redis-py client underneath.
        settings: how the store behaves.
    """

    _awaits = True

    def __init__(
        self, client: clients.AsyncClient, settings: StoreSettings | None = None, *, _link: Link | None = None
    ) -> None:
        """Same as SessionStore, over a redis.asyncio.Redis or redis.asyncio.RedisCluster. Raises TypeError for another."""
        super().__init__(client, settings, _link)

    @classmethod
    def from_url(cls, url: str, settings: StoreSettings | None = None, *, password: str | None = None) -> Self:
        """A store over a client known to be safe, which connects at its first operation. Same as SessionStore.from_url."""
        target, checked = taken_apart(url, settings, password)
        return cls(clients.aconnect(target, checked), checked, _link=clients.link(target, checked))

    def for_namespace(self, namespace: str) -> Self:
        """A store of another namespace over the same client. Same as SessionStore.for_namespace."""
        return type(self)(self.client, self.settings.model_copy(update={"namespace": namespace}), _link=self._link)

    async def get(self, key: str) -> str | None:
        """The live session ID of a conversation, None if there is none. Same as SessionStore.get."""
        return await self._run(self._ops.get(key))

    async def peek(self, key: str) -> Peek | None:
        """The live session ID and how long it has left, in one round trip. Same as SessionStore.peek."""
        return await self._run(self._ops.peek(key))

    async def set(self, key: str, session_id: str) -> None:
        """Save a session ID. Same as SessionStore.set."""
        await self._run(self._ops.set(key, session_id))

    async def delete(self, key: str, session_id: str | None = None) -> bool:
        """Delete a conversation's session ID, or only that one. Same as SessionStore.delete."""
        return await self._run(self._ops.delete(key, session_id))

    async def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Claim a conversation for `lease_ms`. Same as SessionStore.acquire."""
        return await self._run(self._ops.acquire(key, token))

    async def renew(self, lease: Lease) -> bool:
        """Start a lease's time anew. Same as SessionStore.renew."""
        return await self._run(self._ops.renew(lease))

    async def save(self, lease: Lease, session_id: str) -> bool:
        """Save a session ID and give the lease back. Same as SessionStore.save."""
        return await self._run(self._ops.save(lease, session_id))

    async def reject(self, lease: Lease) -> bool:
        """Delete the session ID that this lease found, if it is still there. Same as SessionStore.reject."""
        return await self._run(self._ops.reject(lease))

    async def release(self, lease: Lease) -> bool:
        """Give a lease back without saving. Same as SessionStore.release."""
        return await self._run(self._ops.release(lease))

    async def increment_resume_failures(self) -> int:
        """Count one refused resume. Same as SessionStore.increment_resume_failures."""
        return await self._run(self._ops.increment(RESUME_FAILURES))

    async def resume_failures_total(self) -> int:
        """How many resumes were refused. Same as SessionStore.resume_failures_total."""
        return await self._run(self._ops.counter(RESUME_FAILURES))

    async def counters(self) -> dict[str, int | None]:
        """`resume_failures_total`, `resumes_total` and `fresh_starts_total`. Same as SessionStore.counters."""
        return await self._run(self._ops.counters())

    async def report(self, progress: Progress | None = None) -> Report:
        """Scan all session keys and tell how they are. Same as SessionStore.report."""
        return await self._run(scan.report(self.settings, self._ops.counters(), progress))

    async def sessions(self) -> AsyncIterator[SessionRow]:
        """Every live session, a page at a time. Same as SessionStore.sessions."""
        walk = scan.Scan(self.settings)
        while (pages := await self._run(walk.next_pages())) is not None:
            for page in pages:
                for row in scan.session_rows(self.settings, page):
                    yield row

    async def live_session_ids(self) -> frozenset[str]:
        """Every session ID that a key names. Same as SessionStore.live_session_ids."""
        return await self._run(scan.live_session_ids(self.settings))

    async def import_legacy(
        self,
        path: str | Path,
        *,
        assume_used_at: Literal["mtime"] | int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Import a sessions.json. Same as SessionStore.import_legacy.

        The file is read in a thread.
        """
        entries = await asyncio.to_thread(legacy.read, path)
        return await self._run(migrate.import_entries(self.settings, entries, assume_used_at, progress, dry_run=dry_run))

    async def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Write every live session to a sessions.json. Same as SessionStore.export."""
        with legacy.Writer(path) as writer:
            return await self._run(migrate.export_entries(self.settings, writer.add, progress))

    async def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Look at the server, the way to it and the keys. Same as SessionStore.doctor."""
        from redis_sessions.doctor import examine  # noqa: PLC0415 - one that few call, and long to import

        quorums = [await self._quorum(sentinel, service) for sentinel, service in clients.sentinels(self.client)]
        connection = Connection(self._link.tls, self._link.risks)
        return await self._run(examine(self.settings, connection, quorums, agent, progress))

    async def retime(
        self, max_age_ms: int | None = None, *, dry_run: bool = False, progress: Progress | None = None
    ) -> RetimeResult:
        """Let no session live longer than a max age from now on, after it was lowered. Same as SessionStore.retime."""
        return await self._run(retime.retime(self.settings.with_max_age(max_age_ms), progress, dry_run=dry_run))

    async def resume(
        self,
        key: str,
        run: Callable[[str | None], Awaitable[Turn[V]]],
        *,
        judge: Judge = judge_by_phrase,
        accepts: Callable[[str], bool] | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: Literal["run", "raise"] = "run",
    ) -> ResumeResult[V]:
        """Run one turn of a conversation. Same as SessionStore.resume.

        `run` is awaited. A cancellation, too, gives the lease back before it goes on.
        """
        request = Request(key, judge, accepts, wait_ms=wait_ms, lease=lease, on_outage=on_outage)
        return await runner.adrive(self._ops, self._run, resume(self._ops, request), run)

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _quorum(self, sentinel: clients.AsyncClient, service: str) -> object:
        from redis_sessions.doctor import ask_quorum  # noqa: PLC0415 - see doctor

        try:
            return await arun(sentinel, ask_quorum(service))
        except StoreUnavailable as error:
            return error

    async def _run(self, op: Op[T]) -> T:
        return await arun(self.client, op, self._link)
