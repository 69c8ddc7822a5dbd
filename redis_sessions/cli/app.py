"""The app and its commands, with the help and the exit codes of each."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from redis_sessions.cli import acl, agents, conversations, docs, doctor, metrics, report, serve, transfer
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import (
    NAMESPACE,
    NAMESPACE_VARIABLE,
    CliCommand,
    Json,
    Options,
    given_words,
    value,
    with_common,
)
from redis_sessions.cli.run import command as run
from redis_sessions.cli.signals import until_asked_to_stop

NAME: Final = "redis-sessions"
# A paragraph that begins with a backspace keeps its line breaks.
_UNWRAPPED: Final = "\b\n"
_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


class Program(TyperGroup):
    """The group of all commands. It ends in an exit code, and in a traceback only for a bug.

    Common options may stand before the command's name: they are passed on to it, before its own, so that the last one counts
    and one that means nothing to it is refused.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        """Parse, run and exit. A command returns its exit code, or None for DONE."""
        options |= {"prog_name": NAME, "standalone_mode": False}
        sys.exit(exits.guarded(lambda: super(Program, self).main(*args, **options)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, [*given_words(ctx), *rest]


def _exit_codes(own: Mapping[int, str]) -> str:
    """The exit codes for the end of a command's help, its own meanings before the common ones; "" leaves one out."""
    meanings = {exits.DONE: "done", exits.PARTLY: "", exits.USAGE: "what was given can't be used"}
    meanings |= {exits.UNREACHABLE: "Redis can't be reached, or refuses", **own}
    width = max(len(str(code)) for code in meanings)
    lines = [f"  {code:<{width}}  {meaning}" for code, meaning in meanings.items() if meaning]
    return "\n".join((f"{_UNWRAPPED}Exit codes:", *lines))


app = typer.Typer(
    cls=Program,
    context_settings=_SETTINGS,
    epilog=_exit_codes({exits.PARTLY: "not found, or done in part"}),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Plain help starts twice as fast, and is readable in a pipe.
    rich_markup_mode=None,
)


def program(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    namespace: Annotated[  # noqa: ARG001 - passed on by given_words; a list for the commands that take several
        list[str] | None, value("--namespace", "NAME", NAMESPACE, envvar=NAMESPACE_VARIABLE, show_default="sessions")
    ] = None,
    **_: Any,
) -> None:
    """Session IDs of agents' conversations, kept in Redis for many workers.

    An ID that was not used for the max age (default: 24h) expires. Every command takes --help. The options that commands
    share may stand before or after the command's name; if one is given twice, the last counts, but metrics and acl take
    every --namespace.
    """
    if version:
        show.put(f"{NAME} {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(exits.USAGE)


_own = [parameter for name, parameter in inspect.signature(program).parameters.items() if name != "_"]
app.callback()(with_common(program, _own, Options.__dataclass_fields__.keys() - {"namespace"}))


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def demo(
    *,
    # Never from the environment: a demo must not use somebody's store unless asked to.
    url: Annotated[str | None, value("--url", "URL", "A Redis to use; default: one of its own.")] = None,
    workers: Annotated[int, value("--workers", "N", "Worker processes.", min=1)] = 4,
    turns: Annotated[int, value("--turns", "N", "Turns to run, each twice.", min=1)] = 60,
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
        with until_asked_to_stop() as signals:
            figures = run_demo(url=url, workers=workers, turns=turns)
    except DemoError as error:
        show.complain(f"the demo can't continue: {error}")
        return exits.PARTLY
    if signals.stopped_by is not None:
        show.complain("the demo was stopped; nothing of it is left")
        return 128 + signals.stopped_by
    with suppress(BrokenPipeError):  # the exit code tells how it went, even if nobody reads on
        if as_json:
            show.put_json(figures._asdict())
        else:
            view.show(figures)
    return exits.DONE if figures.all_ran_once else exits.PARTLY


_NO_REDIS: Final = {exits.UNREACHABLE: ""}
# Each command, whose docstring is its help, and what its exit codes mean beside the common ones.
_COMMANDS: Final[tuple[tuple[str, Callable[..., int], Mapping[int, str]], ...]] = (
    ("run", run.run, _NO_REDIS | run.CODES),
    ("get", conversations.get, {exits.PARTLY: "no live session ID"}),
    ("set", conversations.set_, {}),
    ("delete", conversations.delete, {exits.PARTLY: "nothing was deleted"}),
    ("list", conversations.list_, {exits.PARTLY: "some may have been missed"}),
    ("leases", conversations.leases, {exits.PARTLY: "some may have been missed"}),
    ("release", conversations.release, {exits.PARTLY: "no worker had it, or the answer was no"}),
    ("report", report.report, {}),
    ("import", transfer.import_, {exits.PARTLY: "some entries were rejected"}),
    ("export", transfer.export, {exits.PARTLY: "some may have been missed"}),
    ("doctor", doctor.doctor, {exits.PARTLY: "something is broken (with --strict: or not ok)"}),
    ("retime", doctor.retime, {exits.PARTLY: "some may have been missed: run it again; or the answer was no"}),
    ("failures", conversations.failures, {exits.PARTLY: "a counter is not a number"}),
    ("agents", agents.agents, _NO_REDIS),
    ("acl", acl.acl, _NO_REDIS),
    ("metrics", metrics.metrics, {exits.PARTLY: "a counter is not a number"}),
    ("docs", docs.docs, _NO_REDIS),
    ("serve", serve.serve, _NO_REDIS | {exits.PARTLY: "the server ended unexpectedly"}),
    ("demo", demo, {exits.PARTLY: "a turn failed, or two ran at once in one conversation"}),
)

for _name, _command, _codes in _COMMANDS:
    app.command(
        _name,
        cls=run.RunCommand if _command is run.run else CliCommand,
        help=(inspect.getdoc(_command) or "").replace("\nExamples:\n", f"\n{_UNWRAPPED}Examples:\n"),
        epilog=_exit_codes(_codes),
        context_settings=_SETTINGS,
    )(_command)
