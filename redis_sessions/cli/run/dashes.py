"""The words of `run`: a key and options, then `--`, then the agent's command, in which no option is ours."""

from __future__ import annotations

from typing import Any, Final

from redis_sessions.cli.program import NAME, Command
from redis_sessions.errors import InvalidSettings

DASHES: Final = "--"
_REMEDY: Final = f"write {NAME} run KEY -- AGENT-COMMAND"


class DashedCommand(Command):
    """A command whose last argument, a list named `command`, stands after `--` and nowhere else."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Same as Command.collect_usage_pieces, with the dashes."""
        *before, last = super().collect_usage_pieces(ctx)
        return [*before, DASHES, last]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse. Raises InvalidSettings where a key, `--` or the command is missing."""
        own = args[: args.index(DASHES)] if DASHES in args else args
        if not {*ctx.help_option_names}.isdisjoint(own):
            return list(super().parse_args(ctx, ctx.help_option_names[:1]))
        if DASHES not in args:
            # Else an option of the agent's could be taken for one of ours.
            raise InvalidSettings("-- is missing before the agent's command", remedy=_REMEDY)
        rest = args[len(own) + 1 :]
        if rest[1:2] == [DASHES] and rest[0].startswith("-"):
            # No agent is called like that, but a key may be.
            own, rest = [*own, DASHES, rest[0]], rest[2:]
        # Two of them stand for the command, so that it is seen which words come before it: if the key is missing, one of
        # them is taken for it, and parsing never fails for want of a command.
        dashes = [DASHES] * (2 if DASHES in own else 3)
        left: list[str] = super().parse_args(ctx, [*own, *dashes, *rest])
        command = ctx.params["command"]
        if ctx.params["key"] == DASHES:
            raise InvalidSettings("KEY is missing before --", remedy=_REMEDY)
        if command[:2] != [DASHES, DASHES]:
            raise InvalidSettings("more than KEY stands before --", remedy=_REMEDY)
        if len(command) == 2:
            raise InvalidSettings("AGENT-COMMAND is missing after --", remedy=_REMEDY)
        ctx.params["command"] = command[2:]
        return left
