r"""Agent runtimes as data: how each is called, where its output names the session, and how it refuses to resume.

`get_agent("codex").judge` is a judge for `resume`; `known_agents()` lists them. Each is a TOML file; to add one, copy one
(`redis-sessions agents codex --toml > mine.toml`), change it, and use it: `redis-sessions run --agent-file mine.toml`, or
`load("mine.toml")` in Python. The keys:

    name = "mine"                    # the only key that is required; a file in a directory is called like its runtime
    like = "codex"                   # a runtime of this package, whose keys count where they are not given here
    executables = ["mine"]           # names of its program; none: it is called from Python
    packages = ["mine-cli"]          # npm or PyPI packages that npx, bunx, pnpm dlx or uvx run it from
    keeps_sessions = "30d"           # how long it keeps a session; left out: not established
    sessions_of = "codex"            # the runtime whose sessions it continues; left out: it has its own
    home_at = ["$MINE_HOME", "$HOME/.mine"]         # where they are: the first path whose variable is set; default: $HOME
    directory_options = ["--cd"]                    # options by which it works in another directory than it was started in
    elsewhere_options = ["--attach"]                # options by which a server runs it, perhaps on another machine
    bound_to = ["host", "home", "directory"]        # a session can be resumed only where these are the same
    once_bound_to = ["directory"]    # the same of some of its versions

    session_id = '{uuid}'            # a regular expression for a whole session ID
    resume = ["--resume={id}"]       # arguments that resume the session {id}; [place], below, says where they go
    keeps_id = true                  # a resumed session keeps its ID: if another one answers, the old one was gone
    new_id_options = ["--fork"]      # options with which a resumed session has a new ID all the same
    mint = ["--session-id={id}"]     # arguments that give a fresh session its ID
    ephemeral = ["--no-save"]        # options with which nothing can be resumed later
    ephemeral_resumes = false        # whether a session can be resumed with them; default: true
    silent_refusal = true            # stdout stays empty when it refuses to resume; or where: ["text"], ["json"]
    print_mode = ["-p", "--print"]   # options; without one of them it starts a conversation at a terminal
    json_output = "--format json"    # what to add to a command so that its output names the session

    session_id_at = [{ path = "session.id", record = { type = "result" } }]     # where records name the session
    session_id_line = 'session id: {id}'            # a stderr line that names it
    session_id_stdout_line = 'session: {id}'        # a line of text on stdout that names it
    turn_began = [{ type = "init" }]                # records that show it at work: from then on nothing is run again
    turn_began_line = 'session id: '                # a stderr line that shows it, after which stderr is a transcript
    answered = [{ type = "message" }]               # records that show that the model has answered: the session is real
    answered_unless = [{ message.model = "none" }]  # those of them that don't, such as an error in an answer's place
    answered_line = 'mine:'                         # in text mode, a stderr line that shows it, if not of the prompt
    answer_on_stdout = true                         # in text mode, anything on stdout is the model's
    turn_ended = [{ type = "result" }]              # records that end a turn, well or not; the last one counts
    turn_failed = [{ type = "result", error = "..." }]      # records, of those or others, that say that it failed
    turn_failed_line = 'Error: '                    # a stderr line that says so, whatever the exit code
    failed_stdout_line = 'Error: '                  # a line of text on stdout that says so, whatever the exit code
    turn_closed = [{ type = "result" }]             # records after which only its process ends; default: turn_ended
    spurious_failures = [{ type = "result", turns = 0 }]    # failed ends that mean nothing after one of success
    context_tokens_at = { record = { type = "result" }, paths = ["usage.input", "usage.cached"] }   # size of the context:
                                     # the sum of the last numbers there; or a list of such, the best one first
    ignore_stderr_after = [{ type = "message" }]    # records after which stderr may quote what was said; default: turn_began
    error_paths = ["error.message"]                 # where a failed record has its own words
    refusals = [                     # those words, or lines, that say that the session can't be resumed
      { verdict = "gone", pattern = 'No session {id}' },        # or "invalid_id", "busy", "unusable"
      { verdict = "unusable", pattern = 'Context is full', within_turn = true },        # an error of the model's API
      { verdict = "unavailable", pattern = 'API error 5', within_turn = true },         # trouble with provider or login
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

A record, such as `{ type = "result" }`, stands for every JSON object in the output that has these names with these values,
also in objects and lists inside it: `{ message.model = "x" }`. `"..."` stands for any value but null, false, zero and empty,
and `"Error: ..."` for a text that begins so. A path is dotted, and goes through lists. A regular expression
matches from the first character (write it in single quotes, so that a backslash is one); `{uuid}` in it stands for a UUID,
and `{id}` for a session ID, in quotes or not. Lines have no ANSI codes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from redis_sessions.agents.agent import KNOWN, Agent, ContextTokens, RecordField, Refusal, Verified, load
from redis_sessions.agents.command_line import ResumePlace
from redis_sessions.agents.evidence import Evidence
from redis_sessions.errors import InvalidSettings

__all__ = [
    "Agent",
    "ContextTokens",
    "Evidence",
    "RecordField",
    "Refusal",
    "ResumePlace",
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

    A file that `register_directory` has made known may be wrong: raises InvalidSettings. Raises TypeError for a name that is
    not a str.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"an agent must be the name of a runtime, such as 'claude', or where it says so a redis_sessions.agents.Agent, "
            f"not {type(name).__name__}"
        )
    return _agent(name)


def _agent(name: str) -> Agent:
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
    return tuple(_agent(name) for name in sorted({*_files(), *_agents}))


def file_of(name: str) -> Path | None:
    """The TOML file that a runtime of that name comes from, or None."""
    return _files().get(name)


def register(agent: Agent) -> None:
    """Make a runtime of your own known under its name, in this process, in place of one of the same name."""
    _files().pop(agent.name, None)
    _agents[agent.name] = agent


def register_directory(directory: str | Path) -> None:
    """Make every `NAME.toml` of a directory known under its name, in this process, in place of one of the same name.

    Each is read when it is asked for. Raises InvalidSettings if the directory can't be read.
    """
    try:
        # Not by `glob`, which finds nothing in a directory that can't be read.
        paths = sorted(path for path in Path(directory).iterdir() if path.suffix == ".toml")
    except OSError as error:
        remedy = "name a directory with a TOML file for each runtime"
        raise InvalidSettings(f"{directory} can't be read ({error.strerror})", remedy=remedy) from None
    for path in paths:
        _files()[path.stem] = path
        _agents.pop(path.stem, None)
