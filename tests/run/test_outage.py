"""`run` without Redis: the agent runs all the same, unless asked to raise."""

from __future__ import annotations

from pathlib import Path

import pytest

from redis_sessions.server import EmbeddedServer
from tests.run.stage import DEADLINE_S, SAID, TURN, Stage

pytestmark = pytest.mark.usefixtures("hasty")
NOWHERE = ["--url", "unix:///nowhere/redis.sock"]


@pytest.mark.parametrize("code", [0, 9])
def test_without_redis_the_agent_still_runs(stage: Stage, code: int) -> None:
    stage.script(fresh=[["read"], *SAID, ["exit", code]])
    done = stage.run(*NOWHERE, "--result", str(stage.result_file), given=b"prompt")
    assert (done.code, done.out) == (code, TURN.encode())
    assert stage.told("read")[0]["size"] == 6
    assert stage.result["saved"] is False
    if code == 0:
        assert stage.result["how"] == "fresh"
        assert "store unavailable" in stage.result["reason"]


@pytest.mark.parametrize("command", ["EVAL", "EVALSHA", "HSET"])
def test_what_a_server_refuses_does_not_stop_the_agent(stage: Stage, command: str, tmp_path: Path) -> None:
    stage.script(fresh=[*SAID, ["exit", 0]])
    (file := tmp_path / "more.conf").write_text(f'rename-command {command} ""\n')
    with EmbeddedServer(extra={"include": str(file)}) as server:
        for _ in range(2):  # the first must not leave a lease behind
            done = stage.run("--url", server.url, "--result", str(stage.result_file))
            assert (done.code, done.out) == (0, TURN.encode())
            assert (stage.result["how"], stage.result["saved"]) == ("fresh", False)
            assert "does not know" in stage.result["reason"]


def test_without_redis_and_on_outage_raise(stage: Stage) -> None:
    done = stage.run(*NOWHERE, "--on-outage", "raise", "--result", str(stage.result_file))
    assert (done.code, done.out, len(done.said)) == (69, b"", 1)
    assert stage.starts == []
    assert (stage.result["exit_code"], stage.result["how"]) == (69, None)


def test_redis_goes_away_while_the_agent_runs(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID, ["exit", 0]])
    with EmbeddedServer() as server:
        process = stage.start("--url", server.url, "--result", str(stage.result_file))
        stage.hear("ready")
        server.kill()
    stage.go("go")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, TURN.encode())
    assert stage.result["saved"] is False
    assert "not saved" in stage.result["reason"]
