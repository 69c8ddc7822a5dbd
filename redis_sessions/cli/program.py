"""The program and its commands as typer sees them: how they end, and what their help looks like."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli.output import is_terminal

NAME: Final = "redis-sessions"
SHORT: Final = {"help_option_names": ["-h", "--help"]}
UNREACHABLE: Final = "Redis can't be reached, or refuses"
_TYPE = re.compile(r"^(  [A-Z][A-Z-]*) <\S+>", re.MULTILINE)
_HEADING = re.compile(r"^( *)([A-Z][a-z]+(?: codes)?:)", re.MULTILINE)
# A paragraph that begins with a backspace keeps its line breaks.
_AS_IT_STANDS: Final = "\b\n"


class Program(TyperGroup):
    """The group of all commands; what it runs ends in an exit code, never in a traceback for what can be explained."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Parse, run and exit. A command returns its exit code, or None for DONE."""
        options |= {"prog_name": NAME, "standalone_mode": False}
        sys.exit(exits.guarded(lambda: super(Program, self).main(*args, **options)))

    def get_help(self, ctx: Any) -> str:
        """The help; at a terminal its headings are bold."""
        return _embolden(super().get_help(ctx))


class Command(TyperCommand):
    """One command."""

    def get_help(self, ctx: Any) -> str:
        """Same as Program.get_help; of arguments it tells no type, since their names do."""
        return _embolden(_TYPE.sub(lambda typed: typed[1].ljust(len(typed[0])), super().get_help(ctx)))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments as manual pages write them: `KEY [ID]`, whatever braces this version of typer adds."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"[{}]", "", piece).replace("[[", "[").replace("]]", "]") for piece in pieces]


def add(
    app: typer.Typer,
    name: str,
    command: Callable[..., int],
    *,
    partly: str = "",
    unreachable: str = UNREACHABLE,
    codes: Mapping[int, str] | None = None,
    kind: type[Command] = Command,
) -> None:
    """Add a command, whose docstring is its help.

    `partly` and `unreachable` say what these exit codes mean there; `codes` are further ones, or other meanings.
    """
    text = (inspect.getdoc(command) or "").replace("\nExamples:\n", f"\n{_AS_IT_STANDS}Examples:\n")
    app.command(name, cls=kind, help=text, epilog=exit_codes(partly, unreachable, codes), context_settings=SHORT)(command)


def exit_codes(partly: str, unreachable: str = UNREACHABLE, codes: Mapping[int, str] | None = None) -> str:
    """The exit codes for the end of a command's help; those without a meaning are left out."""
    meanings = {
        exits.DONE: "done",
        exits.PARTLY: partly,
        exits.USAGE: "what was given can't be used",
        exits.UNREACHABLE: unreachable,
        **(codes or {}),
    }
    width = max(len(str(code)) for code in meanings)
    lines = [f"  {code:<{width}}  {meaning}" for code, meaning in meanings.items() if meaning]
    return "\n".join((f"{_AS_IT_STANDS}Exit codes:", *lines))


def _embolden(text: str) -> str:
    if not is_terminal(sys.stdout) or os.environ.get("TERM") == "dumb":
        return text
    return _HEADING.sub(lambda heading: heading[1] + typer.style(heading[2], bold=True), text)
