"""The commands on single conversations and on all of them: get, set, delete, list and failures."""

from functools import partial
from typing import Annotated

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import MAX_AGE_OPTIONS, Key, Options, on_a_store
from redis_sessions.errors import InvalidSessionID
from redis_sessions.text import duration

SessionID = Annotated[str, typer.Argument(metavar="ID", help="The agent's session ID.")]
SameID = Annotated[str | None, typer.Argument(metavar="ID", help="Delete only if it is still this session ID.")]
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
def list_(at: Options) -> int:
    """List the live sessions.

    At a terminal, as a table. In a pipe or file, a line each of key, session ID, and milliseconds idle and until expiry,
    separated by tabs, with "-" for unknown or never. With --json, an object each, with the time at which that was so. What
    is not printable in a key is escaped, and exact only in JSON. The order is arbitrary, and a session may come twice. Idle
    times depend on the max age: give the one that the sessions were set with.

    Examples:
      redis-sessions list
      redis-sessions list | cut -f 1
      redis-sessions list --json | jq -r 'select(.idle_ms > 3600000).key'
    """
    with at.store() as store:
        rows = store.sessions()
        if at.as_json:
            show.put_sessions(rows, store.settings.namespace)
        else:
            tables.show_sessions(rows)
    if not rows.exact:
        show.complain(show.APPROXIMATE)
    return exits.DONE if rows.exact else exits.PARTLY


@partial(on_a_store, but=MAX_AGE_OPTIONS)
def failures(at: Options, *, increment: Increment = False) -> int:
    """Print how many resumes the agents have refused.

    All workers share the counter, which never expires. An increment is sent only once: if its reply is lost, the command
    fails, and it may have been counted or not.

    Examples:
      redis-sessions failures
      redis-sessions failures --increment
    """
    with at.store() as store:
        total = store.increment_resume_failures() if increment else store.resume_failures_total()
    at.put_result({"resume_failures_total": total}, lambda: show.put(str(total)))
    return exits.DONE
