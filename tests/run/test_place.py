"""Where a session was made, when it is left for another one, and how the agent's process learns of it."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from redis_sessions import SessionStore, StoreSettings, Turn
from redis_sessions.agents import get_agent
from redis_sessions.cli.run import place
from redis_sessions.cli.run.command import ELSEWHERE
from redis_sessions.operations.conversation import Place
from tests.run.stage import CLAUDE, KEY, REFUSED, SAID, E, R, Stage

TURN_OF_R = json.dumps({"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": R})
SAID_R = [["out", f"{TURN_OF_R}\n"]]


@pytest.fixture
def store(stage: Stage) -> Any:
    with SessionStore.from_url(stage.cli.url, StoreSettings(namespace=stage.cli.namespace)) as store:
        yield store


def told(stage: Stage) -> list[tuple[str | None, ...]]:
    """What each run found in its environment: how, and the previous session."""
    return [tuple(each["turn"]) for each in stage.told("start")]


class TestRotation:
    @pytest.mark.parametrize("given", ["option", "environment", "config"])
    def test_by_turns(self, stage: Stage, given: str, tmp_path: Path) -> None:
        (tmp_path / "limits.json").write_text('{"maxTurns": 2, "sessionMaxAgeMs": 60000}')
        options, env = {
            "option": (["--max-turns", "2"], {}),
            "environment": ([], {"REDIS_SESSIONS_MAX_TURNS": "2"}),
            "config": (["--config", str(tmp_path / "limits.json")], {}),
        }[given]
        # An outer `run` must not be taken for this one.
        env |= {"REDIS_SESSIONS_HOW": "gave_up", "REDIS_SESSIONS_PREVIOUS_ID": E}
        for how, said in (("fresh", SAID_R), ("resumed", SAID_R), ("rotated", SAID), ("resumed", SAID)):
            stage.script(fresh=said, resumed=said)
            done = stage.run("--result", str(stage.result_file), *options, env=env)
            assert (done.code, stage.result["how"], done.said) == (0, how, [])
        assert told(stage) == [("fresh", None), ("resumed", R), ("rotated", R), ("resumed", E)]
        names = ("rotations_total", "fresh_starts_total", "resumes_total")
        assert [int(stage.cli.raw.get(stage.cli.keys.counter(name))) for name in names] == [1, 2, 2]

    def test_by_age_and_by_context(self, stage: Stage) -> None:
        usage = {"input_tokens": 3000, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 10}
        large = json.dumps(json.loads(TURN_OF_R) | {"usage": usage})
        stage.script(fresh=[["out", f"{large}\n"]], resumed=[["out", f"{large}\n"]])
        for options, how in (
            (["--max-context", "3210"], "fresh"),
            (["--max-context", "3211"], "resumed"),
            (["--max-context", "3210"], "rotated"),
            (["--max-lifetime", "1h"], "resumed"),
            (["--max-lifetime", "1ms"], "rotated"),
        ):
            stage.run("--result", str(stage.result_file), *options)
            assert stage.result["how"] == how

    def test_a_context_of_unknown_size_is_said(self, stage: Stage) -> None:
        assert stage.run().said == []
        [said] = stage.run("--max-context", "5").said
        assert "how large the context of claude is" in said

    def test_a_refused_limit_names_its_option(self, stage: Stage) -> None:
        for options, name in ((["--max-turns", "0"], "--max-turns"), (["--max-lifetime", "3"], "--max-lifetime")):
            done = stage.run(*options)
            assert (done.code, stage.starts) == (2, [])
            assert name in done.said[0]


class TestElsewhere:
    def there(self, store: SessionStore, **differs: str) -> None:
        """Plant a session that was made where these differ."""
        made = {"host": socket.gethostname(), "home": os.path.realpath(os.environ["CLAUDE_CONFIG_DIR"])}
        store.resume(KEY, lambda _: Turn(R), agent="claude", place=Place(**made | {"directory": str(Path.cwd())} | differs))

    @pytest.fixture(autouse=True)
    def home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path))

    def test_a_session_that_is_gone_here_has_moved(self, stage: Stage, store: SessionStore) -> None:
        self.there(store, home="/home/of/another")
        stage.script(fresh=SAID, resumed=REFUSED)
        done = stage.run("--result", str(stage.result_file))
        assert (done.code, stage.result["how"], stage.result["moved"]) == (0, "restarted", True)
        assert "made elsewhere (home)" in done.said[0]
        assert "'/home/of/another'" in done.said[0]
        assert "let both use that home, as a volume" in done.said[0]
        assert (store.resume_failures_total(), told(stage)) == (0, [("resumed", R), ("restarted", R)])
        record = store.peek(KEY).record
        assert record.place == Place(
            socket.gethostname(), os.path.realpath(os.environ["CLAUDE_CONFIG_DIR"]), str(Path.cwd())
        )

    def test_another_directory_of_an_older_version(self, stage: Stage, store: SessionStore) -> None:
        self.there(store, directory="/src/another")
        stage.script(resumed=REFUSED)
        done = stage.run("--result", str(stage.result_file))
        assert (stage.result["moved"], store.resume_failures_total()) == (True, 0)
        assert "run its turns in that directory" in done.said[0]

    def test_raise_runs_nothing(self, stage: Stage, store: SessionStore) -> None:
        self.there(store, host="build-7")
        done = stage.run("--on-elsewhere", "raise", "--result", str(stage.result_file))
        assert (done.code, stage.starts, stage.stored()) == (ELSEWHERE, [], R)
        assert "host 'build-7'" in done.said[0]
        assert "--on-elsewhere try" in done.said[0]
        assert stage.result["exit_code"] == ELSEWHERE
        assert not stage.leased()

    def test_raise_where_the_place_is_not_known(self, stage: Stage) -> None:
        command = ["ssh", "build-7", "claude", "{resume}", "-p", "hi"]
        done = stage.run("--on-elsewhere", "raise", "--agent", "claude", command=command)
        assert (done.code, stage.starts) == (2, [])
        assert "where the agent runs" in done.said[0]

    def test_a_session_of_another_agent_is_not_tried(self, stage: Stage, store: SessionStore) -> None:
        self.there(store)
        done = stage.run("--agent", "qwen", command=["qwen", "-p", "--output-format", "json", "hi"])
        assert f"Redis held '{R}', which is a session of claude" in done.said[0]
        assert "--resume" not in str(stage.starts)


WHERE = [
    (["claude", "-p", "hi"], True),
    (["/opt/bin/claude", "-p", "hi"], True),
    (["timeout", "60", "nice", "claude", "-p", "hi"], True),
    (["env", "LANG=C", "claude", "-p", "hi"], True),
    (["sh", "-c", "exec claude -p hi"], True),
    (["npx", "@anthropic-ai/claude-code", "-p", "hi"], True),
    (["env", "HOME=/other", "claude", "-p", "hi"], False),
    (["env", "-i", "claude", "-p", "hi"], False),
    (["env", "-C", "/other", "claude", "-p", "hi"], False),
    (["sh", "-c", "CLAUDE_CONFIG_DIR=/other claude -p hi"], False),
    (["sh", "-c", "cd /other && claude {resume} -p hi"], False),
    (["sh", "-c", 'exec "$@"', "sh", "claude", "-p", "hi"], True),
    (["sh", "-c", 'cd /other && exec "$@"', "sh", "claude", "-p", "hi"], False),
    (["timeout", "60", "sh", "-c", 'cd /other; "$0" "$@"', "claude", "-p", "hi"], False),
    (["sh", "-c", 'export CLAUDE_CONFIG_DIR=/other; exec "$@"', "sh", "claude", "-p", "hi"], False),
    (["mise", "exec", "node@22", "--", "claude", "-p", "hi"], True),
    (["mise", "exec", "-C", "/other", "--", "claude", "-p", "hi"], False),
    (["mise", "exec", "--cd=/other", "--", "claude", "-p", "hi"], False),
    (["npx", "-yw", "other", "@anthropic-ai/claude-code", "-p", "hi"], False),
    (["npm", "exec", "--workspace=other", "--", "claude", "-p", "hi"], False),
    (["env", "-iC", "/other", "claude", "-p", "hi"], False),
    (["env", "XDG_DATA_HOME=/other", "claude", "-p", "hi"], True),
    (["dotenv", "-vHOME=/other", "--", "claude", "-p", "hi"], False),
    (["direnv", "exec", "/other", "claude", "-p", "hi"], False),
    (["sudo", "-u", "agent", "claude", "-p", "hi"], False),
    (["ssh", "build-7", "claude", "-p", "hi"], False),
    (["docker", "exec", "box", "claude", "-p", "hi"], False),
    (["docker", "run", "--rm", "image", "claude", "{resume}", "-p", "hi"], False),
    (["kubectl", "exec", "pod", "--", "claude", "-p", "hi"], False),
]


@pytest.mark.parametrize(("command", "known"), WHERE)
def test_only_a_place_that_is_certain_is_known(command: list[str], *, known: bool) -> None:
    assert (place.place_of(get_agent("claude"), command) is not None) == known


ELSEWHERE_BY_OPTION = [
    ("codex", "codex exec -C /other hi"),
    ("codex", "codex exec --json -C/other hi"),
    ("codex", "codex exec --cd=/other hi"),
    ("codex", "codex exec --worktree hi"),
    ("opencode", "opencode run --dir /other hi"),
    ("opencode", "opencode run {resume} --format json --dir=/other hi"),
    ("kilo", "kilo run --dir /other hi"),
    ("claude", "claude -p hi -w feature"),
    ("claude", "timeout 60 claude -pw feature hi"),
    ("copilot", "copilot -C /other -p hi"),
    ("cursor", "cursor-agent --workspace /other -p hi"),
    ("droid", "droid exec --cwd /other hi"),
    ("gemini", "sh -c 'gemini -wfeature -p hi'"),
    ("grok", "grok --worktree=feature -p hi"),
    ("auggie", "auggie -w /other --print hi"),
    ("hermes", "hermes chat -w -q hi"),
    ("qwen", "qwen --worktree=feature -p hi"),
]
IN_THIS_DIRECTORY = [
    ("codex", "codex exec -c x=1 hi"),
    ("codex", "codex exec -- --cd"),
    ("codex", "codex exec hi --json -- -C"),
    ("opencode", "opencode run hi"),
    ("claude", "claude -p hi -- -w"),
    ("claude", "timeout 60 claude -p 'what does -w do'"),
]


@pytest.mark.parametrize(
    ("agent", "command", "known"),
    [
        *((agent, command, False) for agent, command in ELSEWHERE_BY_OPTION),
        *((agent, command, True) for agent, command in IN_THIS_DIRECTORY),
    ],
)
def test_no_directory_is_recorded_with_an_option_that_changes_it(agent: str, command: str, *, known: bool) -> None:
    found = place.place_of(get_agent(agent), shlex.split(command))
    assert found is not None
    assert found.home is not None
    assert found.directory == (os.getcwd() if known else None)  # noqa: PTH109 - a text


@pytest.mark.parametrize(
    ("agent", "command"),
    [
        ("opencode", "opencode run --attach http://localhost:4096 hi"),
        ("kilo", "kilo run --attach=http://localhost:4096 hi"),
        ("codex", "codex exec --remote ws://localhost:4096 hi"),
    ],
)
def test_nothing_is_recorded_of_a_session_on_a_server(agent: str, command: str) -> None:
    assert place.place_of(get_agent(agent), shlex.split(command)) is None


def test_the_home_is_the_one_that_the_runtime_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    for variable in ("CODEX_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    codex, command = get_agent("codex"), ["codex", "exec", "--json", "hi"]

    def home() -> str | None:
        found = place.place_of(codex, command)
        return found and found.home

    assert home() == f"{tmp_path}/.codex"
    monkeypatch.setenv("CODEX_HOME", "")
    assert home() == f"{tmp_path}/.codex"
    monkeypatch.setenv("CODEX_HOME", f"{tmp_path}/link/own")
    assert home() == f"{tmp_path}/own"


def test_a_relative_home_in_a_directory_that_was_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", "own")
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    found = place.place_of(get_agent("claude"), CLAUDE)
    assert found is not None
    assert (found.home, found.directory) == (None, None)


def test_a_random_name_of_a_container_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def host() -> str | None:
        found = place.place_of(get_agent("claude"), CLAUDE)
        return found and found.host

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(place, "_IN_CONTAINER", (tmp_path / "marker",))
    monkeypatch.setattr(socket, "gethostname", lambda: "0123456789ab")
    assert host() == "0123456789ab"
    (tmp_path / "marker").touch()
    assert host() is None
    monkeypatch.setattr(socket, "gethostname", lambda: "build-7")
    assert host() == "build-7"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert host() is None
