"""The commands on single conversations and on all of them: get, set, delete, list, leases, release and failures."""

import heapq
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import MAX_AGE_OPTIONS, Key, Options, Yes, confirmed, on_a_store, say_empty, value
from redis_sessions.errors import InvalidSessionID, InvalidSettings
from redis_sessions.keys import GAVE_UP, RESUME_FAILURES, ROTATIONS
from redis_sessions.operations.scan import LeaseRow, SessionRow
from redis_sessions.operations.text import duration, parse_duration_ms, safe

MAX_SORTED: Final = 1_000_000

SessionID = Annotated[str, typer.Argument(metavar="ID", help="The agent's session ID.")]
SameID = Annotated[str | None, typer.Argument(metavar="ID", help="Delete only if it is still this session ID.")]
Prefix = Annotated[str | None, value("--prefix", "TEXT", "Only conversations whose key begins so.")]
OfAgent = Annotated[str | None, value("--agent", "NAME", "Only sessions that are recorded for this runtime.")]
IdleOver = Annotated[str | None, value("--idle-over", "TIME", "Only sessions that were unused for longer.")]
Sort = Annotated[
    Literal["key", "idle", "expires", "turns"] | None,
    typer.Option("--sort", help="By key; by longest idle, soonest expiry, or most turns first."),
]
Limit = Annotated[int | None, value("--limit", "N", "No more than N of them.", min=1)]
Increment = Annotated[bool, typer.Option("--increment", help="Add one first, then print.")]


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def get(at: Options, key: Key) -> int:
    """Print the live session ID of a conversation.

    Reading it does not extend its life. With --json, also print how long it has left.

    Examples:
      redis-sessions get acme/shop#42:reviewer
      id=$(redis-sessions get "$KEY") && claude --resume "$id"
      redis-sessions get -- -a-key-with-a-dash-in-front
    """
    session_id = expires_in_ms = None
    with at.store() as store:
        try:
            if not at.as_json:
                session_id = store.get(key)
            elif found := store.peek(key):
                session_id, expires_in_ms, _ = found
        except InvalidSessionID as error:
            show.complain(str(error))
            return exits.PARTLY
    result = {"key": key, "session_id": session_id, "expires_in_ms": expires_in_ms}
    at.put_result(result, lambda: None if session_id is None else show.put(session_id))
    if session_id is not None:
        return exits.DONE
    show.complain(f"{key!r} has no live session ID")
    return exits.PARTLY


@on_a_store
def set_(at: Options, key: Key, session_id: SessionID) -> int:
    """Save the session ID of a conversation.

    It then lives for the whole max age, even if it is the same as before. Leases are ignored: a worker that runs the
    conversation now will overwrite it.

    Examples:
      redis-sessions set acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
      redis-sessions set --max-age 90m acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
    """
    with at.store() as store:
        store.set(key, session_id)
        max_age_ms = store.settings.session_max_age_ms
    saved = {"key": key, "session_id": session_id, "expires_in_ms": max_age_ms}
    at.put_result(saved, lambda: show.remark(f"saved, expires in {duration(max_age_ms)}"))
    return exits.DONE


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def delete(at: Options, key: Key, session_id: SameID = None) -> int:
    """Delete the session ID of a conversation.

    Its next turn starts fresh. With an ID, delete it only if it is still that one: what a worker has just saved stays.

    Examples:
      redis-sessions delete acme/shop#42:reviewer
      redis-sessions delete acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
    """
    with at.store() as store:
        deleted = store.delete(key, session_id)
    at.put_result({"key": key, "deleted": deleted}, lambda: None)
    if deleted:
        return exits.DONE
    why = "has no live session ID" if session_id is None else "has another session ID, or none"
    show.complain(f"nothing deleted: {key!r} {why}")
    return exits.PARTLY


@on_a_store
def list_(
    at: Options,
    *,
    prefix: Prefix = None,
    agent: OfAgent = None,
    idle_over: IdleOver = None,
    sort: Sort = None,
    limit: Limit = None,
) -> int:
    """List the live sessions.

    At a terminal, as a table, with as many of agent, turns and place as fit. In a pipe or file, a line each of key, session
    ID, milliseconds idle and until expiry, agent, turns, host, agent home and directory, separated by tabs, with "-" for
    unknown or never. With --json, an object each, with the time at which that was so. What is not printable in a key is
    escaped, and exact only in JSON. A session may come twice; the order is arbitrary without --sort, which holds all that it
    sorts in memory.

    Examples:
      redis-sessions list
      redis-sessions list --agent claude --idle-over 12h
      redis-sessions list --prefix acme/ --sort turns --limit 20
      redis-sessions list | cut -f 1
      redis-sessions list --json | jq -r 'select(.record.turns > 50).key'
    """
    idle_over_ms = None if idle_over is None else parse_duration_ms(idle_over, "--idle-over")

    def wanted(row: SessionRow) -> bool:
        return (
            (prefix is None or row.key.startswith(prefix))
            and (agent is None or (row.record is not None and row.record.agent == agent))
            and (idle_over_ms is None or (row.idle_ms is not None and row.idle_ms > idle_over_ms))
        )

    with at.store() as store:
        found = store.sessions()
        first = next(found, None)
        rows: Iterable[SessionRow] = found if first is None else chain([first], found)
        if (prefix, agent, idle_over) != (None, None, None):
            rows = filter(wanted, rows)
        if sort is not None:
            rows = _sorted(rows, sort, limit)
        rows = islice(rows, limit)
        if at.as_json:
            show.put_sessions(rows, store.settings.namespace)
        else:
            tables.show_sessions(rows)
        if first is None:
            say_empty(store)
    # None: the limit was reached before the end.
    if found.exact is False:
        show.complain(show.APPROXIMATE)
        return exits.PARTLY
    return exits.DONE


def _sorted(rows: Iterable[SessionRow], by: str, limit: int | None) -> Iterable[SessionRow]:
    """Rows in an order, what is unknown last; all of them, or the first `limit`. Raises InvalidSettings for too many."""
    order: dict[str, Callable[[SessionRow], tuple[Any, ...]]] = {
        "key": lambda row: (row.key,),
        "idle": lambda row: (row.idle_ms is None, -(row.idle_ms or 0)),
        "expires": lambda row: (row.expires_in_ms is None, row.expires_in_ms or 0),
        "turns": lambda row: (-(row.record.turns if row.record else 0),),
    }
    if limit is not None and limit <= MAX_SORTED:
        return heapq.nsmallest(limit, rows, order[by])
    held = list(islice(rows, MAX_SORTED + 1))
    if len(held) > MAX_SORTED:
        raise InvalidSettings(
            f"--sort would hold more than {MAX_SORTED:,} sessions in memory",
            remedy="add a lower --limit, or a --prefix",
        )
    held.sort(key=order[by])
    return held


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def leases(at: Options) -> int:
    """List who runs what now.

    One lease a conversation that is being run: the worker's host and process, and how long its lease lasts unless it is
    renewed. In a pipe or file, a line each of key, host, process and milliseconds, separated by tabs, with "-" for unknown.

    Examples:
      redis-sessions leases
      redis-sessions leases --json | jq -r 'select(.host == "build-7").key'
    """
    with at.store() as store:
        rows = store.leases()
        if at.as_json:
            for row in rows:
                host, pid = row.worker
                at.put_json({"key": row.key, "host": host, "pid": pid, "remaining_ms": row.remaining_ms})
        else:
            tables.show_leases(rows)
    if not rows.exact:
        show.complain(show.APPROXIMATE)
    return exits.DONE if rows.exact else exits.PARTLY


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def release(at: Options, key: Key, *, yes: Yes = False) -> int:
    """Take the lease of a conversation away from the worker that has it.

    For a worker that hangs, and keeps its lease. The conversation is free at once. The run that had it is not ended: its
    next renewal tells it that it was taken over, and it can't save. Asks at a terminal.

    Examples:
      redis-sessions release acme/shop#42:reviewer
      redis-sessions release --yes acme/shop#42:reviewer
    """
    if not confirmed(f"Take {key!r} away from the worker that runs it? Its run goes on, and can't save.", yes=yes):
        return exits.PARTLY
    with at.store() as store:
        held = store.break_lease(key)
    if held is None:
        at.put_result({"key": key, "host": None, "pid": None, "remaining_ms": None}, lambda: None)
        show.complain(f"nothing released: no worker has {key!r}")
        return exits.PARTLY
    host, pid = LeaseRow(key, held.holder, held.remaining_ms).worker
    who = "a worker that gave no name" if host is None else f"process {pid} on {host}"
    at.put_result(
        {"key": key, "host": host, "pid": pid, "remaining_ms": held.remaining_ms},
        lambda: show.put(safe(f"taken from {who}, whose lease would have lasted {duration(held.remaining_ms)} more")),
    )
    return exits.DONE


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def failures(at: Options, *, increment: Increment = False) -> int:
    """Print how many resumes the agents have refused.

    At a terminal, and with --json, also how many sessions were given up after failures, and rotated because they had reached
    a limit. All workers share these counters, which never expire. An increment is sent only once: if its reply is lost, the
    command fails, and it may have been counted or not.

    Examples:
      redis-sessions failures
      redis-sessions failures --increment
    """
    with at.store() as store:
        total = store.increment_resume_failures() if increment else store.resume_failures_total()
        counters = store.counters()
    others = {name: counters[name] for name in (GAVE_UP, ROTATIONS)}
    at.put_result({RESUME_FAILURES: total} | others, lambda: show.put(str(total)))
    wrong = [name for name, number in others.items() if number is None]
    if not at.as_json and not wrong:
        show.remark(f"given up: {others[GAVE_UP]}, rotated: {others[ROTATIONS]}")
    for name in wrong:
        show.complain(f"counter {name} is not an integer: redis-sessions doctor shows how to fix it")
    return exits.PARTLY if wrong else exits.DONE
