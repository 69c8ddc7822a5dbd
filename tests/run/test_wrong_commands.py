"""Commands that are written wrong: each is refused before anything is run, and the message says what to write instead."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redis_sessions.cli.app import app
from tests import test_cli_support
from tests.run.stage import CLAUDE, SAID, TURN, E, R, Stage
from tests.run.terminal import Terminal


@pytest.fixture
def refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is said when these words are refused; nothing was run then, counted or touched."""

    def words(*given: str) -> str:
        stage.plant()
        stage.put_on(monkeypatch)
        done = CliRunner().invoke(app, ["run", *given])
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(r"redis-sessions: [^\n]+\n", done.stderr)
        assert stage.starts == []
        assert stage.kept()
        assert stage.counters == (0, 0, 0)
        assert not stage.leased()
        return done.stderr

    return words


# -- a command that resumes by itself


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["claude", "--resume", "abc", "-p", "x"], "--resume"),
        (["claude", f"--resume={E}", "-p", "x"], "--resume"),
        (["claude", "-r", E, "-p", "x"], "-r"),
        (["claude", f"-r{E}", "-p", "x"], "-r"),
        (["claude", "-c", "-p", "x"], "-c"),
        (["claude", "-cp", "x"], "-c"),
        (["claude", "-pc", "x"], "-c"),
        (["claude", "--continue", "-p", "x"], "--continue"),
        (["env", "A=b", "claude", "-p", "--continue"], "--continue"),
        (["codex", "exec", "resume", R, "x"], "resume"),
        (["codex", "exec", "--json", "resume", "--last"], "resume"),
        (["codex", "resume", R], "resume"),
        (["gemini", "--resume", "latest", "-p", "x"], "--resume"),
        (["opencode", "run", "--session", "ses_1", "x"], "--session"),
        (["opencode", "run", "-s", "ses_1", "x"], "-s"),
        (["opencode", "run", "-c", "x"], "-c"),
        (["copilot", "--resume", "-p", "x"], "--resume"),
        (["copilot", "--continue", "-p", "x"], "--continue"),
    ],
)
def test_a_command_that_resumes_on_its_own(stage: Stage, refused: Any, command: list[str], word: str) -> None:
    said = refused(*stage.arguments(command=command)[1:])
    assert f"the command resumes a session by itself ({word}): remove that argument, the conversation's own is put" in said


def test_a_command_that_names_its_session(stage: Stage, refused: Any) -> None:
    said = refused(*stage.arguments(command=["claude", "--session-id", E, "-p", "x"])[1:])
    assert "the command names a session by itself (--session-id): remove that argument" in said


@pytest.mark.parametrize(
    "command",
    [
        ["claude", "-p", "--", "--resume"],
        ["claude", "-p", "--model", "m", "-c is a flag, isn't it?"],
        ["claude", "-dp", "x"],
        ["codex", "exec", "-c", "a=b", "x"],
        ["gemini", "-mpro", "-p", "x"],
    ],
)
def test_words_that_only_look_like_resuming(stage: Stage, command: list[str]) -> None:
    stage.script(fresh=SAID)
    assert stage.run(command=command).code == 0
    assert stage.starts == [command]


# -- a command that would talk to a terminal


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["codex"], "without its subcommand exec this agent does not run one turn and end: write exec after its name"),
        (["codex", "go on"], "without its subcommand exec"),
        (["codex", "-m", "exec"], "without its subcommand exec"),
        (["opencode"], "without its subcommand run"),
        (["opencode", "serve"], "without its subcommand run"),
    ],
)
def test_an_agent_without_its_subcommand(stage: Stage, refused: Any, command: list[str], words: str) -> None:
    assert words in refused(*stage.arguments(command=command)[1:])


def at_a_terminal(stage: Stage, command: list[str], *options: str) -> tuple[int, str]:
    def start(*starter: str, **how: Any) -> Any:
        return stage.launch(*starter, *test_cli_support.PROGRAM, *stage.arguments(*options, command=command), **how)

    with Terminal(start) as screen:
        return screen.wait(), screen.shown


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["claude"], "-p or --print"),
        (["claude", "go on"], "-p or --print"),
        (["env", "claude", "--", "-p"], "-p or --print"),
        (["claude", "{resume}"], "-p or --print"),
        (["gemini", "-i", "go on"], "-p or --prompt"),
        (["copilot"], "-p or --prompt"),
    ],
)
def test_an_interactive_agent_at_a_terminal(stage: Stage, command: list[str], option: str) -> None:
    code, shown = at_a_terminal(stage, command)
    assert code == 2
    assert f"redis-sessions: without {option}, " in shown
    assert "talks to a terminal, and here it has none: add -p and a prompt, or start it without redis-sessions" in shown
    assert shown.count("\n") == 1
    assert stage.starts == []


@pytest.mark.parametrize(
    "command", [["claude", "--print", "x"], ["claude", "-dp", "x"], ["env", "claude", "-p"], ["gemini", "--prompt=x"]]
)
def test_one_turn_at_a_terminal(stage: Stage, command: list[str]) -> None:
    stage.script(fresh=SAID)
    assert at_a_terminal(stage, command, "--quiet") == (0, TURN)


@pytest.mark.parametrize("name", ["wrapper", "bash"])
def test_a_wrapped_agent_is_not_refused_at_a_terminal(stage: Stage, name: str) -> None:
    """What a program of somebody's hands on to the agent is its own affair."""
    (stage.binaries / name).hardlink_to(stage.binaries / "claude")
    stage.script(fresh=SAID)
    assert at_a_terminal(stage, [name, "{resume}"], "--agent", "claude") == (0, TURN)


@pytest.mark.parametrize("agent", ["claude", "gemini", "copilot"])
def test_without_a_terminal_the_prompt_may_come_from_stdin(stage: Stage, agent: str) -> None:
    stage.script(fresh=[["read"], *SAID])
    assert stage.run("--quiet", command=[agent], given=b"prompt").code == 0
    assert stage.told("read")[0]["size"] == 6


# -- KEY, -- and the command


WRITE = "write redis-sessions run KEY -- AGENT-COMMAND"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "claude", "-p", "x"], "KEY is missing before --"),
        (["--", "claude"], "KEY is missing before --"),
        (["--verbose", "--", "claude", "-p", "--", "x"], "KEY is missing before --"),
        (["--"], "KEY is missing before --"),
        (["k", "claude", "-p", "x"], "-- is missing before the agent's command"),
        (["k", "claude"], "-- is missing before the agent's command"),
        # What is an option of ours as well must not be taken from the agent.
        (["k", "codex", "exec", "--verbose", "x"], "-- is missing before the agent's command"),
        (["k"], "-- is missing before the agent's command"),
        ([], "-- is missing before the agent's command"),
        (["k", "--"], "AGENT-COMMAND is missing after --"),
        (["--", "-p", "x"], "KEY is missing before --"),
        (["--", "-k", "--"], "AGENT-COMMAND is missing after --"),
        (["k", "--", "-k", "--"], "more than KEY stands before --"),
        (["k", "claude", "--", "-p"], "more than KEY stands before --"),
    ],
    ids=str,
)
def test_words_that_are_missing(refused: Any, words: list[str], said: str) -> None:
    assert refused(*words) == f"redis-sessions: {said}: {WRITE}\n"


def test_a_result_file(stage: Stage, refused: Any, tmp_path: Path) -> None:
    """A place that can't be written is refused before anything runs; a stream can be written, also if others own /dev."""
    assert f"{tmp_path} can't be written (Is a directory)" in refused("k", "--result", str(tmp_path), "--", *CLAUDE)
    assert "can't be written" in refused("k", "--result", str(tmp_path / "no" / "x"), "--", *CLAUDE)
    stage.script(fresh=SAID)
    assert json.loads(stage.run("--quiet", "--result", "/dev/stderr").err)["saved"] is True


def test_later_dashes_belong_to_the_agent(stage: Stage) -> None:
    command = ["claude", "-p", "--", "--", "--help"]
    stage.script(fresh=SAID)
    assert stage.run(command=command).code == 0
    assert stage.starts == [command]


def test_a_key_that_starts_with_a_dash(stage: Stage) -> None:
    stage.script(fresh=SAID)
    words = ["run", *stage.cli.options, "--", "-k", "--", *CLAUDE]
    process = stage.launch(*test_cli_support.PROGRAM, *words)
    assert stage.finish(process).code == 0
    assert stage.starts == [CLAUDE]
    assert stage.saved(E, key="-k")


def test_help_anywhere_before_the_dashes() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage: redis-sessions run [OPTIONS] KEY -- AGENT-COMMAND...\n")
    assert CliRunner().invoke(app, ["run", "-h"]).stdout == shown.stdout
    assert CliRunner().invoke(app, ["run", "k", "--help", "--", "claude"]).stdout == shown.stdout


def test_run_has_no_json_option(refused: Any) -> None:
    """An option that changes nothing would only look like --result."""
    assert "No such option: --json" in refused("k", "--json", "--", "claude", "-p")
    assert "--json " not in CliRunner().invoke(app, ["run", "--help"]).stdout.partition("Examples:")[0]
