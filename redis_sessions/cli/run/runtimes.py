"""Which runtime a command runs: known by its executable or --agent, read from --agent-file, or described by options."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from redis_sessions.agents import Agent, RecordField, Refusal, UnknownAgent, get_agent, known_agents, load
from redis_sessions.agents.command_line import guess, name_of
from redis_sessions.cli.agents import register_users_runtimes
from redis_sessions.errors import InvalidSettings
from redis_sessions.resume.turn import Verdict


def runtime_of(
    command: list[str],
    *,
    name: str | None,
    file: Path | None,
    resume_argument: str | None,
    id_field: str | None,
    gone: str | None,
) -> Agent:
    """The runtime of a command, as the options of the same names say. Raises InvalidSettings."""
    if file is not None:
        return _loaded(file, name, resume_argument, id_field, gone)
    if resume_argument is not None:
        return _described(name or name_of(command[0]), command, resume_argument, id_field, gone)
    if id_field is not None or gone is not None:
        raise InvalidSettings("--id-field and --gone describe a runtime of your own", remedy="add --resume-argument")
    register_users_runtimes()
    program = name_of(command[0])
    with suppress(UnknownAgent):
        # One file is read, not all of them.
        agent = get_agent(name or program)
        if (name is not None and agent.executables) or program in agent.executables:
            return agent
    runtimes = [agent for agent in known_agents() if agent.executables]
    chosen = None if name else guess(command, [executable for agent in runtimes for executable in agent.executables])
    for agent in runtimes:
        if chosen in agent.executables:
            return agent
    names = ", ".join(agent.name for agent in runtimes)
    raise InvalidSettings(
        f"{name or program} is not an agent that can be run here",
        remedy=f"name one with --agent ({names}), or describe it: --agent-file or --resume-argument",
    )


def _loaded(file: Path, *others: str | None) -> Agent:
    if any(other is not None for other in others):
        raise InvalidSettings(
            "--agent-file describes a runtime whole",
            remedy="leave out --agent, --resume-argument, --id-field and --gone",
        )
    agent = load(file)
    if not agent.resume:
        raise InvalidSettings(f"{file}: resume is missing", remedy='add the arguments, resume = ["--resume={id}"]')
    return agent


def _described(name: str, command: list[str], resume_argument: str, id_field: str | None, gone: str | None) -> Agent:
    if "{id}" not in resume_argument:
        raise InvalidSettings("--resume-argument has no {id} in it", remedy="write it as --session={id}")
    try:
        refusals = (Refusal(Verdict.gone, gone),) if gone and re.compile(gone) else ()
    except re.error as error:
        raise InvalidSettings(f"--gone is not a regular expression ({error})", remedy="correct it") from None
    return Agent(
        name=name,
        executables=(name_of(command[0]),),
        resume=tuple(resume_argument.split()),
        session_id_at=(RecordField(id_field),) if id_field else (),
        turn_began=({},),
        turn_ended=({},),
        refusals=refusals,
    )
