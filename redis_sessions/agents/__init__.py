r"""Agent runtimes as data: how each is called, where its output names the session, and how it refuses to resume.

`get_agent("codex").judge` is a judge for `resume`. Known are claude, codex, gemini, opencode, copilot, claude-agent-sdk,
openai and agentcore. Each is a TOML file; to add a runtime, copy one (`redis-sessions agents codex --toml > mine.toml`),
change it, and use it: `redis-sessions run --agent-file mine.toml`, or `load("mine.toml")` in Python. The keys:

    name = "mine"                    # the only key that is required; a file in a directory is called like its runtime
    like = "codex"                   # a runtime of this package, whose keys count where they are not given here
    executables = ["mine"]           # names of its program; none: it is called from Python
    packages = ["@mine/cli"]         # npm or PyPI packages that run it, by npx, bunx, pnpm dlx or uvx
    keeps_sessions = "30d"           # how long it keeps a session; left out: not established
    bound_to = ["host", "home", "directory"]        # a session can be resumed only where these are the same

    session_id = '{uuid}'            # a regular expression for a whole session ID
    resume = ["--resume={id}"]       # arguments that resume the session {id}; [place], below, says where they go
    print_mode = ["-p", "--print"]   # options; without one of them it starts a conversation at a terminal
    json_output = "--format json"    # what to add to a command so that its output names the session

    session_id_at = [{ path = "session.id", record = { type = "result" } }]     # where records name the session
    session_id_line = 'session id: {id}'            # a stderr line that names it
    turn_began = [{ type = "init" }]                # records that show it at work: from then on nothing is run again
    turn_began_line = 'session id: '                # a stderr line that shows it, after which stderr is a transcript
    turn_ended = [{ type = "result" }]              # records that end a turn, well or not; the last one counts
    turn_failed = [{ type = "result", error = "..." }]      # those of them that say that it failed
    turn_failed_line = 'Error: '                    # a stderr line that says so, whatever the exit code
    ignore_stderr_after = [{ type = "message" }]    # records after which stderr may quote what was said; default: turn_began
    error_paths = ["error.message"]                 # where a failed record has its own words
    refusals = [                     # those words, or stderr lines, that say that the session can't be resumed
      { verdict = "gone", pattern = 'No session {id}' },        # or "invalid_id", "busy", "unusable"
      { verdict = "unusable", pattern = 'Context is full', within_turn = true },        # also after the turn has begun
    ]
    error_reader = "process"         # what it raises in Python: "process" (an error with returncode, stdout and stderr),
                                     # "claude_sdk" or "openai"

    [place]                          # left empty: right after the executable; left out: {resume} in the command must say it
    subcommands = ["exec", "e"]      # after one of these, the first word that is neither an option nor its value
    before_prompt = true             # before the prompt, or behind the options that follow it, all of which must be these:
    value_options = ["-m"]           # options whose value is the next word
    list_options = ["-i"]            # options that take all words up to the next option
    flags = ["--json"]               # options without a value
    resumes = ["--continue"]         # options, or words in place of subcommand or prompt, that choose a session: refused
    excludes = ["--list-sessions"]   # the same for others with which nothing can be resumed

    [[verified]]                     # versions for which all this was checked, oldest first, and how
    versions = ["1.0", "1.2"]
    evidence = "ran offline"         # their real output was seen; or "documents"

A record, such as `{ type = "result" }`, stands for every JSON object in the output that has these names with these values;
`"..."` stands for any value but null, false, zero and empty. A path is dotted, and goes through lists. A regular expression
matches from the first character (write it in single quotes, so that a backslash is one); `{uuid}` in it stands for a UUID,
and `{id}` for a session ID, in quotes or not. Lines have no ANSI codes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from redis_sessions.agents.agent import KNOWN, Agent, RecordField, Refusal, Verified, load
from redis_sessions.agents.command_line import Place
from redis_sessions.agents.evidence import Evidence
from redis_sessions.errors import InvalidSettings

__all__ = [
    "Agent",
    "Evidence",
    "Place",
    "RecordField",
    "Refusal",
    "UnknownAgent",
    "Verified",
    "file_of",
    "get_agent",
    "known_agents",
    "load",
    "register",
    "register_directory",
]


class UnknownAgent(InvalidSettings):
    """No runtime goes by that name."""


_agents: dict[str, Agent] = {}


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(KNOWN.glob("*.toml"))}


def get_agent(name: str) -> Agent:
    """The runtime of that name; its file is read at the first call. Raises UnknownAgent, which lists the names.

    A file that `register_directory` has made known may be wrong: raises InvalidSettings.
    """
    if name not in _agents:
        if (path := file_of(name)) is None:
            names = ", ".join(sorted({*_files(), *_agents}))
            raise UnknownAgent(f"no agent runtime {name[:40]!r} is known", remedy=f"name one of {names}")
        agent = load(path)
        if agent.name != name:
            raise InvalidSettings(f"{path}: name is {agent.name!r}", remedy=f"write {name!r}, or rename the file")
        _agents[name] = agent
    return _agents[name]


def known_agents() -> tuple[Agent, ...]:
    """All runtimes that are known, by name. Raises InvalidSettings for a file that is wrong."""
    return tuple(get_agent(name) for name in sorted({*_files(), *_agents}))


def file_of(name: str) -> Path | None:
    """The TOML file that a runtime of that name comes from, or None."""
    return _files().get(name)


def register(agent: Agent) -> None:
    """Make a runtime of your own known under its name, in this process, in place of one of the same name."""
    _files().pop(agent.name, None)
    _agents[agent.name] = agent


def register_directory(directory: str | Path) -> None:
    """Make every `NAME.toml` of a directory known under its name, in this process, in place of one of the same name.

    Each is read when it is asked for. Raises InvalidSettings if there is no such directory.
    """
    if not Path(directory).is_dir():
        raise InvalidSettings(f"{directory} is not a directory", remedy="name one with a TOML file for each runtime")
    for path in sorted(Path(directory).glob("*.toml")):
        _files()[path.stem] = path
        _agents.pop(path.stem, None)
