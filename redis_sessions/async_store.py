"""The store's async flavour: the same operations, handed to the async wire. No logic lives here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self, TypeVar

from redis_sessions import client as clients
from redis_sessions import legacy, migrate, retime, runner, scan
from redis_sessions.commands import Op
from redis_sessions.errors import StoreUnavailable
from redis_sessions.findings import Connection, Diagnosis
from redis_sessions.keys import RESUME_FAILURES
from redis_sessions.migrate import AssumeUsedAt, ExportResult, ImportResult
from redis_sessions.ops import Held, Lease, Peek
from redis_sessions.report import Report
from redis_sessions.resume import resume
from redis_sessions.retime import RetimeResult
from redis_sessions.scan import Progress, SessionRow
from redis_sessions.store import BaseStore
from redis_sessions.turn import Accepts, Judge, OnOutage, Request, ResumeResult, Turn
from redis_sessions.verdicts import judge_by_phrase
from redis_sessions.wire import arun

T = TypeVar("T")
V = TypeVar("V")


class AsyncSessionStore(BaseStore[clients.AsyncClient]):
    """Same as SessionStore, for asyncio; a client from `from_url` belongs to the event loop of its first command."""

    _connect = staticmethod(clients.aconnect)

    async def get(self, key: str) -> str | None:
        """Same as SessionStore.get."""
        return await self._run(self._ops.get(key))

    async def peek(self, key: str) -> Peek | None:
        """Same as SessionStore.peek."""
        return await self._run(self._ops.peek(key))

    async def set(self, key: str, session_id: str) -> None:
        """Same as SessionStore.set."""
        await self._run(self._ops.set(key, session_id))

    async def delete(self, key: str, session_id: str | None = None) -> bool:
        """Same as SessionStore.delete."""
        return await self._run(self._ops.delete(key, session_id))

    async def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Same as SessionStore.acquire."""
        return await self._run(self._ops.acquire(key, token))

    async def renew(self, lease: Lease) -> bool:
        """Same as SessionStore.renew."""
        return await self._run(self._ops.renew(lease))

    async def save(self, lease: Lease, session_id: str) -> bool:
        """Same as SessionStore.save."""
        return await self._run(self._ops.save(lease, session_id))

    async def reject(self, lease: Lease) -> bool:
        """Same as SessionStore.reject."""
        return await self._run(self._ops.reject(lease))

    async def release(self, lease: Lease) -> bool:
        """Same as SessionStore.release."""
        return await self._run(self._ops.release(lease))

    async def increment_resume_failures(self) -> int:
        """Same as SessionStore.increment_resume_failures."""
        return await self._run(self._ops.increment(RESUME_FAILURES))

    async def resume_failures_total(self) -> int:
        """Same as SessionStore.resume_failures_total."""
        return await self._run(self._ops.counter(RESUME_FAILURES))

    async def counters(self) -> dict[str, int | None]:
        """Same as SessionStore.counters."""
        return await self._run(self._ops.counters())

    async def report(self, progress: Progress | None = None) -> Report:
        """Same as SessionStore.report."""
        return await self._run(scan.report(self.settings, self._ops.counters(), progress))

    async def sessions(self) -> AsyncIterator[SessionRow]:
        """Same as SessionStore.sessions."""
        walk = scan.Scan(self.settings)
        while (pages := await self._run(walk.next_pages())) is not None:
            for page in pages:
                for row in scan.session_rows(self.settings, page):
                    yield row

    async def live_session_ids(self) -> frozenset[str]:
        """Same as SessionStore.live_session_ids."""
        return await self._run(scan.live_session_ids(self.settings))

    async def import_legacy(
        self,
        path: str | Path,
        *,
        assume_used_at: AssumeUsedAt = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Same as SessionStore.import_legacy; the file is read in a thread."""
        entries = await asyncio.to_thread(legacy.read, path)
        return await self._run(migrate.import_entries(self.settings, entries, assume_used_at, progress, dry_run=dry_run))

    async def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Same as SessionStore.export."""
        with legacy.Writer(path) as writer:
            return await self._run(migrate.export_entries(self.settings, writer.add, progress))

    async def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Same as SessionStore.doctor."""
        from redis_sessions.doctor import examine  # noqa: PLC0415 - one that few call, and long to import

        quorums = [await self._quorum(sentinel, service) for sentinel, service in clients.sentinels(self.client)]
        connection = Connection(self._link.tls, self._link.risks)
        return await self._run(examine(self.settings, connection, quorums, agent, progress))

    async def retime(
        self, max_age_ms: int | None = None, *, dry_run: bool = False, progress: Progress | None = None
    ) -> RetimeResult:
        """Same as SessionStore.retime."""
        return await self._run(retime.retime(self.settings.with_max_age(max_age_ms), progress, dry_run=dry_run))

    async def resume(
        self,
        key: str,
        run: Callable[[str | None], Awaitable[Turn[V]]],
        *,
        judge: Judge = judge_by_phrase,
        accepts: Accepts | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: OnOutage = "run",
    ) -> ResumeResult[V]:
        """Same as SessionStore.resume; whatever is raised, cancellation included, the lease is released first."""
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
