"""The command that `run` is given: its runtime, the place of the resume argument, and what is refused or can't be run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redis_sessions.agents import known_agents
from redis_sessions.cli.app import app
from tests.run.stage import CLAUDE, COMMANDS, INIT, E, R, Stage

NO_CONTAINER = "Error response from daemon: No such container: box"
KNOWN = ", ".join(agent.name for agent in known_agents() if agent.executables)


def untouched(stage: Stage) -> bool:
    return stage.starts == [] and stage.kept() and not stage.leased() and stage.counters == (0, 0, 0)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["codex", "exec", "go on"], ["codex", "exec", "resume", R, "go on"]),
        (["codex", "exec"], ["codex", "exec", "resume", R]),
        (["codex", "exec", "--", "-x"], ["codex", "exec", "resume", R, "--", "-x"]),
        (["claude", "-p", "--", "{resume}x"], ["claude", f"--resume={R}", "-p", "--", "{resume}x"]),
        (["env", "claude", "-p"], None),
        (["env", "claude", "codex"], ["claude", f"--resume={R}", "codex"]),
        (["env", "claude", "{resume}", "-p", "{resume}"], ["claude", f"--resume={R}", "-p"]),
        (["codex", "{resume}", "--odd"], ["codex", "resume", R, "--odd"]),
        (["sh", "-c", 'exec "$0" "$@"', "gemini", "-p"], ["gemini", f"--resume={R}", "-p"]),
        (["codex", "exec", "go on", "--json", "-s", "o"], ["codex", "exec", "go on", "--json", "-s", "o", "resume", R]),
        (["codex", "exec", "go on", "-i", "a.png"], ["codex", "exec", "go on", "resume", R, "-i", "a.png"]),
        (
            ["timeout", "60", "nice", "claude", "-p", "see packages/codex"],
            ["claude", f"--resume={R}", "-p", "see packages/codex"],
        ),
        (["nohup", "env", "A=codex", "claude", "-p", "bin/claude"], ["claude", f"--resume={R}", "-p", "bin/claude"]),
        (["sh", "-c", 'claude {resume} -p "$0"', "go on"], ["claude", f"--resume={R}", "-p", "go on"]),
        (["sh", "-c", "A=1 codex exec 'go on' --json"], ["codex", "exec", "go on", "--json", "resume", R]),
    ],
)
def test_the_resume_argument_has_its_place(stage: Stage, command: list[str], expected: list[str] | None) -> None:
    stage.plant()
    if any("codex" in word for word in command):
        codex = f'{{"type":"thread.started","thread_id":"{R}"}}\n{{"type":"turn.completed"}}\n'
        stage.script(resumed=[["out", codex]])
    assert stage.run("--verbose", command=command).code == 0
    assert stage.starts == [expected or ["claude", f"--resume={R}", "-p"]]


@pytest.mark.parametrize("agent", ["codex", "opencode"])
def test_a_fresh_start_has_no_resume_argument(stage: Stage, agent: str) -> None:
    command = COMMANDS[agent]
    stage.run(command=[command[0], "{resume}", *command[1:]])
    assert stage.starts == [command]


def test_a_fresh_start_in_a_shell_has_no_mark(stage: Stage) -> None:
    assert stage.run(command=["sh", "-c", 'claude {resume} -p "$0" {resume}', "go on"]).code == 0
    assert stage.starts == [["claude", "-p", "go on"]]


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        ([], ["codex", "exec", "--unheard-of", "x", "go on"], "{resume}"),
        ([], ["codex", "go on"], "{resume}"),
        ([], ["codex", "exec", "resume", R], "{resume}"),
        ([], ["claude", "--continue", "-p"], "{resume}"),
        ([], ["claude", "--resume", E, "-p"], "{resume}"),
        ([], ["opencode", "serve"], "{resume}"),
        ([], ["bot", "-p"], "--agent"),
        ([], ["docker", "run", "box", "claude", "-p"], "as in claude {resume}"),
        ([], ["wrapper", "claude", "codex"], "--agent"),
        (
            ["--agent", "claude"],
            ["wrapper", "claude", "-p"],
            "wrapper is neither the agent nor a launcher that is known here",
        ),
        (["--agent", "codex"], ["claude", "-p"], "as in codex exec {resume}"),
        (["--agent", "nobody"], CLAUDE, KNOWN),
        (["--agent", "openai"], ["claude", "{resume}"], f"{KNOWN})"),
        (["--agent", "claude-agent-sdk"], CLAUDE, f"{KNOWN})"),
        (["--resume-argument", "--session"], ["claude"], "{id}"),
        (["--resume-argument", "--session={id}"], ["claude"], "{resume}"),
        (["--id-field", "x"], CLAUDE, "--resume-argument"),
        (["--gone", "x"], CLAUDE, "--resume-argument"),
        (["--resume-argument", "-s={id}", "--gone", "("], ["claude", "{resume}"], "regular expression"),
        (["--on-outage", "maybe"], CLAUDE, "is not one of"),
        (["--timeout", "5"], CLAUDE, "--timeout has no unit"),
        (["--timeout", "0s"], CLAUDE, "--timeout leaves the agent no time at all"),
        (["--quiet", "--verbose"], CLAUDE, "--quiet and --verbose exclude each other"),
        (["--wait", "soon"], CLAUDE, "--wait is not a number"),
        (["--result", "/nowhere/result.json"], CLAUDE, "/nowhere/result.json can't be written"),
        ([], [], "AGENT-COMMAND"),
    ],
)
def test_an_unknown_or_incomplete_description_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, options: list[str], command: list[str], words: str
) -> None:
    """Nothing is started, and nothing counted."""
    stage.plant()
    stage.put_on(monkeypatch)
    done = CliRunner().invoke(app, stage.arguments(*options, command=command))
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(r"redis-sessions: [^\n]+\n", done.stderr)
    assert words in done.stderr
    assert untouched(stage)


@pytest.mark.parametrize(
    ("program", "code", "planted"),
    [
        ("missing/claude", 127, True),
        ("missing/claude", 127, False),
        ("plain/claude", 126, True),
        ("directory/claude", 126, True),
    ],
)
def test_a_command_that_cannot_be_run(stage: Stage, tmp_path: Path, program: str, code: int, *, planted: bool) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/claude").touch(0o600)
    (tmp_path / "directory/claude").mkdir(parents=True)
    if planted:
        stage.plant()
    done = stage.run("--result", str(stage.result_file), command=[str(tmp_path / program), "-p"])
    assert (done.code, done.out) == (code, b"")
    [said] = done.said
    assert f"{tmp_path / program} can't be run (" in said
    assert stage.counters == (0, 0, 0)
    assert not stage.leased()
    assert stage.kept() if planted else stage.stored() is None
    assert (stage.result["exit_code"], stage.result["saved"]) == (code, False)


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (["timeout", "9"], 127),
        (["env"], 127),
        (["env", "--odd=x"], 125),
        (["sh", "-c", 'exec "$@"', "sh"], 127),
        (["sh", "-c", 'echo "Now using node"; exec "$@"', "sh"], 127),
        (["ssh", "-p", "1", "-o", "BatchMode=yes", "127.0.0.1"], 255),
        (["docker", "exec", "box"], 1),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else None,
)
def test_an_agent_that_its_launcher_cannot_start_costs_no_session(stage: Stage, before: list[str], code: int) -> None:
    """Nothing is counted, as if it could not be run without the launcher: so it costs none however often that is."""
    if shutil.which(before[0]) is None and before[0] != "docker":
        pytest.skip(f"{before[0]} is not installed")
    (stage.binaries / "docker").write_text(f"#!/bin/sh\necho '{NO_CONTAINER}' >&2; exit 1\n")
    (stage.binaries / "docker").chmod(0o700)
    command = [*before, "nowhere/claude", "{resume}", "-p"]
    stage.plant()
    done = stage.run("--agent", "claude", "--result", str(stage.result_file), command=command)
    assert done.code == code
    assert done.said == [f"redis-sessions: the agent was not started, or not reached: its command ended with {code}"]
    assert (stage.result["how"], stage.result["verdict"], stage.result["saved"]) == (None, "other", False)
    # One that is counted makes the record that failures are counted in.
    assert untouched(stage)
    assert not stage.cli.raw.keys(f"{stage.cli.namespace}:record:*")


@pytest.mark.parametrize(
    ("before", "steps"),
    [
        ([], [["err", "what a day\n"], ["exit", 255]]),
        (["timeout", "9"], [["err", "what a day\n"], ["exit", 1]]),
        (["timeout", "9"], [["out", INIT], ["exit", 127]]),
    ],
)
def test_an_agent_that_was_started_and_failed_is_counted(stage: Stage, before: list[str], steps: list[Any]) -> None:
    stage.plant()
    stage.script(resumed=steps)
    for _ in range(3):
        assert stage.run(command=[*before, *CLAUDE]).code == steps[-1][1]
    stage.script()
    assert stage.run("--result", str(stage.result_file), command=[*before, *CLAUDE]).code == 0
    assert stage.result["how"] == "gave_up"


@pytest.mark.usefixtures("patient")
def test_a_program_that_is_not_on_the_path(stage: Stage) -> None:
    stage.plant()
    process = stage.start("--agent", "claude", command=["no-such-agent", "{resume}"])
    # What is to end the agent must not wait for one that never was.
    assert stage.finish(process).code == 127
    assert untouched(stage)


def test_a_variable_that_agents_set_for_their_children_is_not_passed_on(stage: Stage) -> None:
    assert stage.run(env={"CLAUDECODE": "1"}).code == 0
    assert [told["claudecode"] for told in stage.told("start")] == [None]


def test_an_own_runtime(stage: Stage) -> None:
    own = ["--resume-argument=--session={id}", "--id-field", "session.id", "--gone", "lost track of"]
    (stage.binaries / "bot").hardlink_to(stage.binaries / "claude")
    command = ["bot", "ask", "{resume}", "why"]
    stage.script(fresh=[["out", '{"session":{"id":"s-1"}}\n']], resumed=[["out", '{"session":{"id":"s-2"}}\n']])
    assert stage.run(*own, command=command).code == 0
    assert stage.stored() == "s-1"
    assert stage.run(*own, "--result", str(stage.result_file), command=command).code == 0
    assert stage.stored() == "s-2"
    assert stage.result["session_changed"] is True
    stage.script(fresh=[["out", '{"session":{"id":"s-3"}}\n']], resumed=[["err", "lost track of that\n"], ["exit", 3]])
    done = stage.run(*own, command=command)
    assert (done.code, done.out, done.err) == (
        0,
        b'{"session":{"id":"s-3"}}\n',
        b"redis-sessions: session s-2 was refused (gone): started fresh\n",
    )
    assert stage.starts == [
        ["bot", "ask", "why"],
        ["bot", "ask", "--session=s-1", "why"],
        ["bot", "ask", "--session=s-2", "why"],
        ["bot", "ask", "why"],
    ]
    assert stage.counters == (1, 2, 1)


def test_a_parent_that_ignores_the_end_of_its_children(stage: Stage) -> None:
    """The kernel then keeps no exit code for them."""
    stage.script(fresh=[["exit", 3]])
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    assert stage.finish(stage.start_by(sys.executable, "-c", ignoring)).code == 3


def test_an_own_runtime_that_prints_text_before_its_json(stage: Stage) -> None:
    stage.script(fresh=[["out", 'loading\n{"session": {"id": "b-1"}}\n']])
    command = ["claude", "{resume}", "ask"]
    done = stage.run("--resume-argument=--session={id}", "--id-field", "session.id", command=command)
    assert (done.code, done.said, stage.stored()) == (0, [], "b-1")
