"""The app and its commands, with the help and the exit codes of each."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from redis_sessions.cli import acl, agents, conversations, docs, doctor, metrics, report, serve, transfer
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import Json
from redis_sessions.cli.run import command as run
from redis_sessions.cli.signals import until_asked_to_stop

NAME: Final = "redis-sessions"
_UNREACHABLE: Final = "Redis can't be reached, or refuses"
# A paragraph that begins with a backspace keeps its line breaks.
_UNWRAPPED: Final = "\b\n"
_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


class Program(TyperGroup):
    """The group of all commands. It ends in an exit code, and in a traceback only for a bug."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Parse, run and exit. A command returns its exit code, or None for DONE."""
        options |= {"prog_name": NAME, "standalone_mode": False}
        sys.exit(exits.guarded(lambda: super(Program, self).main(*args, **options)))


def _exit_codes(partly: str, unreachable: str = _UNREACHABLE, codes: Mapping[int, str] | None = None) -> str:
    """The exit codes for the end of a command's help; one without a meaning is left out."""
    meanings = {exits.DONE: "done", exits.PARTLY: partly, exits.USAGE: "what was given can't be used"}
    meanings |= {exits.UNREACHABLE: unreachable, **(codes or {})}
    width = max(len(str(code)) for code in meanings)
    lines = [f"  {code:<{width}}  {meaning}" for code, meaning in meanings.items() if meaning]
    return "\n".join((f"{_UNWRAPPED}Exit codes:", *lines))


app = typer.Typer(
    cls=Program,
    add_completion=False,
    context_settings=_SETTINGS,
    epilog=_exit_codes("not found, or done in part"),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Plain help starts twice as fast, and is readable in a pipe.
    rich_markup_mode=None,
)


@app.callback()
def program(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Session IDs of agents' conversations, kept in Redis for many workers.

    An ID that was not used for the max age (default: 24h) expires. Every command takes --help.
    """
    if version:
        show.put(f"{NAME} {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(exits.USAGE)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "(not installed)"


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


def _add(
    name: str,
    command: Callable[..., int],
    partly: str = "",
    unreachable: str = _UNREACHABLE,
    *,
    codes: Mapping[int, str] | None = None,
    kind: type[TyperCommand] = TyperCommand,
) -> None:
    """Add a command, whose docstring is its help.

    `partly` and `unreachable` say what these exit codes mean for it; `codes` are more of them.
    """
    text = (inspect.getdoc(command) or "").replace("\nExamples:\n", f"\n{_UNWRAPPED}Examples:\n")
    epilog = _exit_codes(partly, unreachable, codes)
    app.command(name, cls=kind, help=text, epilog=epilog, context_settings=_SETTINGS)(command)


_add("get", conversations.get, "no live session ID")
_add("set", conversations.set_)
_add("delete", conversations.delete, "nothing was deleted")
_add("list", conversations.list_)
_add("report", report.report)
_add("import", transfer.import_, "some entries were rejected")
_add("export", transfer.export)
_add("run", run.run, unreachable="", codes=run.CODES, kind=run.RunCommand)
_add("doctor", doctor.doctor, "something is broken; with --strict, or not ok")
_add("retime", doctor.retime, "some may have been missed; run it again")
_add("failures", conversations.failures, "the counter is not a number")
_add("agents", agents.agents, unreachable="")
_add("acl", acl.acl, unreachable="")
_add("metrics", metrics.metrics, "a counter is not a number")
_add("docs", docs.docs, unreachable="")
_add("serve", serve.serve, "the server ended unexpectedly", "")
_add("demo", demo, "a turn failed, or two ran at once in one conversation")
