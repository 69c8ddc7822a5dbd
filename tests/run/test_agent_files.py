"""A runtime that nobody knew, added by a TOML file alone: `run --agent-file`, and REDIS_SESSIONS_AGENTS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import test_cli_support
from tests.run.stage import CLAUDE, Stage

TALKER = """
name = "talker"
executables = ["talk"]
session_id = 's-[0-9]+'
resume = ["--session={id}"]
print_mode = ["--once"]
json_output = "--json"
session_id_at = [{ path = "session", record = { type = "end" } }]
turn_began = [{ type = "begin" }]
turn_ended = [{ type = "end" }]
turn_failed = [{ type = "end", error = "..." }]
error_paths = ["error.text"]
refusals = [
  { verdict = "gone", pattern = 'never met {id}' },
  { verdict = "busy", pattern = 'talking to another' },
]

[place]
subcommands = ["ask"]
resumes = ["--session"]
"""
COMMAND = ["talk", "ask", "--once", "--json", "why"]


def said(session_id: str) -> list[list[str]]:
    return [["out", '{"type":"begin"}\n{"type":"end","session":"' + session_id + '"}\n']]


@pytest.fixture
def file(stage: Stage, tmp_path: Path) -> Path:
    (stage.binaries / "talk").hardlink_to(stage.binaries / "claude")
    directory = tmp_path / "runtimes"
    directory.mkdir()
    path = directory / "talker.toml"
    path.write_text(TALKER)
    return path


@pytest.mark.parametrize("how", ["file", "directory", "directory and name", "directory behind a launcher"])
def test_turns_of_a_runtime_from_a_file(stage: Stage, file: Path, how: str) -> None:
    options = {"file": ["--agent-file", str(file)], "directory and name": ["--agent", "talker"]}.get(how, [])
    environment = {} if how == "file" else {"REDIS_SESSIONS_AGENTS": str(file.parent)}
    command = ["env", *COMMAND] if how.endswith("launcher") else COMMAND
    stage.script(fresh=said("s-1"), resumed=said("s-1"))
    for _ in range(2):
        assert stage.run(*options, command=command, env=environment).code == 0
    stage.script(fresh=said("s-2"), resumed=[["err", "never met 's-1'\n"], ["exit", 3]])
    done = stage.run(*options, command=command, env=environment)
    refused = "redis-sessions: session s-1 was refused (gone): started fresh\n"
    assert (done.code, done.out.decode(), done.err.decode()) == (0, said("s-2")[0][1], refused)
    assert stage.saved("s-2")
    busy = '{"type":"end","session":"s-3","error":{"text":"talking to another"}}\n'
    stage.script(resumed=[["out", busy], ["exit", 4]])
    assert stage.run(*options, command=command, env=environment).code == 4
    assert stage.stored() == "s-2"
    assert stage.counters == (1, 2, 1)
    assert stage.starts == [
        COMMAND,
        ["talk", "ask", "--session=s-1", "--once", "--json", "why"],
        ["talk", "ask", "--session=s-1", "--once", "--json", "why"],
        COMMAND,
        ["talk", "ask", "--session=s-2", "--once", "--json", "why"],
    ]


def test_a_file_goes_before_ours_of_the_same_name(stage: Stage, file: Path) -> None:
    (file.parent / "claude.toml").write_text('name = "claude"\nlike = "claude"\nresume = ["--session={id}"]')
    stage.plant()
    assert stage.run(env={"REDIS_SESSIONS_AGENTS": str(file.parent)}).code == 0
    assert stage.starts == [["claude", "--session=11111111-2222-4333-8444-555555555555", *CLAUDE[1:]]]


def test_only_the_file_that_is_needed_is_read(stage: Stage, file: Path) -> None:
    (file.parent / "broken.toml").write_text("name = ")
    environment = {"REDIS_SESSIONS_AGENTS": str(file.parent)}
    assert stage.run(env=environment).code == 0
    done = stage.run(env=environment, command=COMMAND)
    assert (done.code, len(stage.starts)) == (2, 1)
    assert f"{file.parent}/broken.toml: is not TOML" in done.said[0]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (TALKER, ["--agent", "talker"], "--agent-file describes a runtime whole"),
        (TALKER, ["--resume-argument=--session={id}"], "--agent-file describes a runtime whole"),
        ('name = "talker"', [], "resume is missing"),
        ('name = "talker"\nresume = ["--session={id}"]', [], "it is not certain where talk takes its resume argument"),
        ("name = [", [], "talker.toml: is not TOML"),
        (TALKER.replace("never met {id}", "(never"), [], "talker.toml: refusals[0].pattern is not a regular expression"),
    ],
)
def test_what_is_refused_before_anything_runs(stage: Stage, file: Path, text: str, options: list[str], says: str) -> None:
    file.write_text(text)
    done = stage.run("--agent-file", str(file), *options, command=COMMAND)
    assert (done.code, done.out, len(done.said), stage.starts) == (2, b"", 1, [])
    assert says in done.said[0]


def test_the_doctor_knows_how_long_it_keeps_sessions(stage: Stage, file: Path) -> None:
    file.write_text(f'keeps_sessions = "2h"\n{TALKER}')
    words = ["doctor", *stage.cli.options, "--agent", "talker", "--max-age", "3h"]
    process = stage.launch(*test_cli_support.PROGRAM, *words, env={"REDIS_SESSIONS_AGENTS": str(file.parent)})
    assert b"max age 3h; talker keeps a session 2h" in stage.finish(process).out
