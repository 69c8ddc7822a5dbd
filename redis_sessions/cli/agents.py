"""`agents`: the runtimes that are known, how each was verified, and the file of one to start from."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import Json, names_of_runtimes, register_users_runtimes
from redis_sessions.errors import InvalidSettings

if TYPE_CHECKING:
    from redis_sessions.agents import Agent

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show one in full.", autocompletion=names_of_runtimes)]
Toml = Annotated[bool, typer.Option("--toml", help="Print its TOML file, to start one of your own from.")]


def agents(name: Name = None, *, toml: Toml = False, as_json: Json = False) -> int:
    """List the agent runtimes that are known.

    Each with its executables, what a session of it is bound to, how long it keeps one (- if that is not established), and
    the versions it was verified for. A runtime of your own is a TOML file: copy one, and change it. What the keys mean is
    in the documentation of the Python package redis_sessions.agents. REDIS_SESSIONS_AGENTS names a directory with such
    files, each called NAME.toml; one goes before a runtime of this program with the same name.

    Examples:
      redis-sessions agents
      redis-sessions agents codex
      redis-sessions agents codex --toml > bot.toml
      redis-sessions run "$KEY" --agent-file bot.toml -- ./bot -p "Go on"
    """
    from redis_sessions.agents import file_of, get_agent, known_agents

    register_users_runtimes()
    if name is None:
        if toml:
            raise InvalidSettings("--toml prints one runtime", remedy="name it: redis-sessions agents codex --toml")
        _list(known_agents(), as_json=as_json)
        return exits.DONE
    agent, file = get_agent(name), file_of(name)
    if toml and as_json:
        raise InvalidSettings("--toml and --json exclude each other", remedy="give one of them")
    if toml and file is not None:
        show.put(file.read_text("utf-8-sig").removesuffix("\n"))
    elif as_json:
        show.put_json(_facts(agent))
    else:
        table = tables.table("key", "value")
        for key, value in agent:
            if value != type(agent).model_fields[key].default:
                for number, line in enumerate(_lines(key, _plain(value))):
                    table.add_row("" if number else key, show.cell(line))
        show.display(table)
    return exits.DONE


def _list(known: "tuple[Agent, ...]", *, as_json: bool) -> None:
    if as_json:
        for agent in known:
            show.put_json(_facts(agent))
        return
    table = tables.table("name", "executables", "bound to", "keeps sessions", "verified")
    for agent in known:
        verified = [f"{each.evidence}: {_span(each.versions)}" for each in agent.verified]
        words = (", ".join(agent.executables), ", ".join(agent.bound_to), agent.keeps_sessions, "; ".join(verified))
        table.add_row(show.cell(agent.name), *(show.cell(word or show.UNKNOWN) for word in words))
    show.display(table)


def _span(versions: tuple[str, ...]) -> str:
    return versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]} ({len(versions)} versions)"


def _facts(agent: "Agent") -> dict[str, Any]:
    """A runtime for machines: the keys of its description, and the duration in milliseconds as everywhere else."""
    return {key: _plain(value) for key, value in agent} | {"keeps_sessions_ms": agent.keeps_sessions_ms}


def _plain(value: Any) -> Any:
    """A part of a description as its TOML file has it."""
    from redis_sessions.agents.evidence import READERS

    if callable(value):
        return next(word for word, reader in READERS.items() if reader is value)
    if isinstance(value, tuple):
        named = getattr(value, "_asdict", None)
        return [*map(_plain, value)] if named is None else {key: _plain(each) for key, each in named().items()}
    return value


def _lines(key: str, value: Any) -> list[str]:
    """The value of a key for people: a line, or one for each of what it lists."""
    match value:
        case str():
            return [value]
        case dict():
            return [f"{name}: {_words(each)}" for name, each in value.items() if each] or ["right after the executable"]
        case [dict(), *_] if key == "refusals":
            return [f"{each['verdict']}: {each['pattern']}" for each in value]
        case [dict(), *_] if key == "verified":
            return [f"{each['evidence']}: {_words(each['versions'])}" for each in value]
        case [dict(), *_]:
            return [json.dumps(each) for each in value]
    return [_words(value)]


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
