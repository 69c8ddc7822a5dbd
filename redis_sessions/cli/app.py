"""The commands on conversations and on the whole store; those on files and the server have rooms of their own."""

from typing import Annotated

import typer

from redis_sessions.cli import acl, agents, docs, doctor, metrics, serve, transfer
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import Json, Options, on_a_store
from redis_sessions.cli.program import NAME, SHORT, Program, add, exit_codes
from redis_sessions.cli.run import command as run
from redis_sessions.cli.run.dashes import DashedCommand
from redis_sessions.cli.signals import until_asked_to_stop
from redis_sessions.errors import InvalidSessionID, InvalidSettings
from redis_sessions.text import duration

app = typer.Typer(
    cls=Program,
    add_completion=False,
    context_settings=SHORT,
    epilog=exit_codes("not found, or done in part"),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Plain help starts twice as fast, and pipes.
    rich_markup_mode=None,
    subcommand_metavar="COMMAND …",
)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The conversation, such as acme/shop#42:reviewer.")]
SessionID = Annotated[str, typer.Argument(metavar="ID", help="The agent's session ID.")]
SameID = Annotated[str | None, typer.Argument(metavar="ID", help="Delete only if it is still this session ID.")]
Increment = Annotated[bool, typer.Option("--increment", help="Count one more first, then print.")]
Watch = Annotated[bool, typer.Option("--watch", help="Stay, and show what changes, until Ctrl-C.")]
Every = Annotated[
    str | None,
    typer.Option("--every", metavar="TIME", help="With --watch, the time between two key scans: 10s unless told."),
]
Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback()
def program(context: typer.Context, *, version: Version = False) -> None:
    """Session IDs of agents' conversations, kept in Redis for many workers.

    An ID that was not used for the max age (24 h unless told) is gone by itself. Every command takes --help.
    """
    if version:
        show.put(f"{NAME} {_version()}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(exits.USAGE)
    else:
        return
    raise typer.Exit


@on_a_store
def get(at: Options, key: Key) -> int:
    """Print the live session ID of a conversation.

    Reading it does not extend its life. With --json also how long it has left.

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
                session_id, expires_in_ms = found
        except InvalidSessionID as error:
            show.complain(str(error))
            return exits.PARTLY
    if at.as_json:
        show.put_json({"key": key, "session_id": session_id, "expires_in_ms": expires_in_ms})
    elif session_id is not None:
        show.put(session_id)
    if session_id is not None:
        return exits.DONE
    show.complain(f"{key!r} has no live session ID")
    return exits.PARTLY


@on_a_store
def set_(at: Options, key: Key, session_id: SessionID) -> int:
    """Save the session ID of a conversation.

    It then lives for the whole max age, even if it is the same as before. Leases are not minded: a worker that runs the
    conversation now will save over it.

    Examples:
      redis-sessions set acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
      redis-sessions set --max-age 90m acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
    """
    with at.store() as store:
        store.set(key, session_id)
        max_age_ms = store.settings.session_max_age_ms
    if at.as_json:
        show.put_json({"key": key, "session_id": session_id, "expires_in_ms": max_age_ms})
    else:
        show.remark(f"saved, expires in {duration(max_age_ms)}")
    return exits.DONE


@on_a_store
def delete(at: Options, key: Key, session_id: SameID = None) -> int:
    """Delete the session ID of a conversation.

    Its next turn starts fresh. With an ID, only if it is still that one: what a worker has just saved stays.

    Examples:
      redis-sessions delete acme/shop#42:reviewer
      redis-sessions delete acme/shop#42:reviewer 0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11
    """
    with at.store() as store:
        deleted = store.delete(key, session_id)
    if at.as_json:
        show.put_json({"key": key, "deleted": deleted})
    if deleted:
        return exits.DONE
    why = "has no live session ID" if session_id is None else "has another session ID, or none"
    show.complain(f"nothing deleted: {key!r} {why}")
    return exits.PARTLY


@on_a_store
def list_(at: Options) -> int:
    """List the live sessions.

    At a terminal a table; into a pipe or file a line each of key, session ID, and milliseconds idle and until expiry, with
    tabs between and "-" for unknown or never; with --json an object each. What is not printable in a key is escaped, and
    exact only in JSON. The order is Redis's own, and a session may come twice. Idle times rest on the max age: give the
    one that the sessions were set with.

    Examples:
      redis-sessions list
      redis-sessions list | cut -f 1
      redis-sessions list --json | jq -r 'select(.idle_ms > 3600000).key'
    """
    with at.store() as store:
        if at.as_json:
            show.put_sessions(store.sessions())
        else:
            from redis_sessions.cli.tables import show_sessions

            show_sessions(store.sessions())
    return exits.DONE


@on_a_store
def report(at: Options, *, watch: Watch = False, every: Every = None) -> int:
    """Scan all session keys and tell how they are.

    It deletes nothing: Redis does that. How many sessions are live, how long they have been idle, which keys hold
    something else than a session ID, and how often an agent refused to resume. If the scan may have missed keys, because
    slots of a cluster moved, say, stderr tells so.

    With --watch it stays until Ctrl-C and shows a terminal what changes, refusals by the minute as well; while Redis is away
    it says so, and goes on. With --json besides, each scan is a line, for other programs.

    Examples:
      redis-sessions report
      redis-sessions report --watch --every 30s
      redis-sessions report --namespace sessions.claude@build-7
      redis-sessions report --json | jq .counters.resume_failures_total
    """
    if watch:
        from redis_sessions.cli.watch import watch_report

        return watch_report(at, every)
    if every is not None:
        raise InvalidSettings("--every is for --watch", remedy="give both, or neither")
    with at.store() as store, show.progress("scanning") as progress:
        found = store.report(progress)
        namespace = store.settings.namespace
    if at.as_json:
        show.put_json(found.model_dump(mode="json"))
    else:
        from redis_sessions.cli.tables import show_report

        show_report(found, namespace)
    if found.approximate:
        show.complain(show.APPROXIMATE)
    return exits.DONE


@on_a_store
def failures(at: Options, *, increment: Increment = False) -> int:
    """Print how many resumes the agents have refused.

    All workers count in one place, and the counter never expires. An increment is sent once only: if its reply is lost
    the command fails, and it may have counted or not.

    Examples:
      redis-sessions failures
      redis-sessions failures --increment
    """
    with at.store() as store:
        total = store.increment_resume_failures() if increment else store.resume_failures_total()
    if at.as_json:
        show.put_json({"resume_failures_total": total})
    else:
        show.put(str(total))
    return exits.DONE


def demo(
    *,
    # Never from the environment: a demo must not use somebody's store unless asked to.
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="A Redis to use; default: one of its own.")] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Worker processes.")] = 4,
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=1, help="Turns to run, each twice.")] = 60,
    as_json: Json = False,
) -> int:
    """Watch worker processes share sessions.

    They continue each other's conversations twice, without expiry and with it, on a server that is started for them. At the
    end you see how many attempts to resume a dead session the expiry has saved.

    Examples:
      redis-sessions demo
      redis-sessions demo --workers 8 --turns 200
    """
    from redis_sessions.demo import view
    from redis_sessions.demo.main import run_demo
    from redis_sessions.demo.processes import DemoError

    try:
        with until_asked_to_stop() as asked:
            figures = run_demo(url=url, workers=workers, turns=turns)
    except DemoError as error:
        show.complain(f"the demo can't continue: {error}")
        return exits.PARTLY
    if asked:
        show.complain("the demo was stopped; nothing of it is left")
        return 128 + asked[0]
    if as_json:
        show.put_json(figures.model_dump(mode="json"))
    else:
        view.show(figures)
    return exits.DONE if figures.all_ran_once else exits.PARTLY


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "(not installed)"


add(app, "get", get, partly="no live session ID")
add(app, "set", set_)
add(app, "delete", delete, partly="nothing was deleted")
add(app, "list", list_)
add(app, "report", report)
add(app, "import", transfer.import_, partly="some entries were rejected")
add(app, "export", transfer.export)
add(app, "run", run.run, unreachable="", codes=run.CODES, kind=DashedCommand)
add(app, "doctor", doctor.doctor, partly="something is broken; with --strict, or not ok")
add(app, "retime", doctor.retime, partly="some may have been missed; run it again")
add(app, "failures", failures, partly="the counter holds something else than a number")
add(app, "agents", agents.agents, unreachable="")
add(app, "acl", acl.acl, unreachable="")
add(app, "metrics", metrics.metrics, partly="a counter holds something else than a number")
add(app, "docs", docs.docs, unreachable="")
add(app, "serve", serve.serve, partly="the server ended by itself", unreachable="")
add(app, "demo", demo, partly="it did not go as it should")
