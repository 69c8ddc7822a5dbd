"""Which runtime an agent's command is of: told by its name, by --agent, or described by options."""

from __future__ import annotations

import re

from redis_sessions.agents import known_agents
from redis_sessions.agents.command_line import guess, name_of
from redis_sessions.agents.judge import Agent, Refusal
from redis_sessions.errors import InvalidSettings
from redis_sessions.resume.turn import Verdict


def runtime_of(
    command: list[str], name: str | None, resume_argument: str | None, id_field: str | None, gone: str | None
) -> Agent:
    """The runtime of a command, as the options of the same names say. Raises InvalidSettings."""
    if resume_argument is not None:
        return _described(name or name_of(command[0]), command, resume_argument, id_field, gone)
    if id_field is not None or gone is not None:
        raise InvalidSettings("--id-field and --gone describe a runtime of your own", remedy="add --resume-argument")
    # Those without a command are clients in Python, which no command line resumes.
    runtimes = [agent for agent in known_agents() if agent.commands]
    chosen = name or guess(command, [program for agent in runtimes for program in agent.commands])
    for agent in runtimes:
        if chosen == agent.name or (name is None and chosen in agent.commands):
            return agent
    raise InvalidSettings(
        f"{name or name_of(command[0])} is no agent that can be run here",
        remedy=f"name one with --agent ({', '.join(agent.name for agent in runtimes)}), or describe it: --resume-argument",
    )


def _described(name: str, command: list[str], resume_argument: str, id_field: str | None, gone: str | None) -> Agent:
    if "{id}" not in resume_argument:
        raise InvalidSettings("--resume-argument has no {id} in it", remedy="write it as --session={id}")
    try:
        refusals = (Refusal(Verdict.gone, gone),) if gone and re.compile(gone) else ()
    except re.error as error:
        raise InvalidSettings(f"--gone is no regular expression ({error})", remedy="mend it") from None
    return Agent(
        name=name,
        commands=(name_of(command[0]),),
        resume=tuple(resume_argument.split()),
        session_at=(({}, id_field),) if id_field else (),
        began=({},),
        closed=({},),
        refusals=refusals,
    )
