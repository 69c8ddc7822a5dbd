"""The README's recipes, run as they stand there: with Celery, RQ and FastAPI, and in a shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from redis_sessions.server import EmbeddedServer

README = (Path(__file__).parent.parent / "README.md").read_text()
SCRIPTS = re.findall(r"```sh recipe\n(.*?)```", README, re.DOTALL)
# What Claude Code prints in the end; the arguments it was given come back as its answer.
CLAUDE = """#!/bin/sh
printf '{"type": "result", "subtype": "success", "is_error": false, "session_id": "5f2c9a", "result": "%s"}\\n' "$*"
"""


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def recipe(server, request, monkeypatch):
    """Names defined by a recipe, on a server of its own."""

    def run(name):
        [code] = re.findall(rf"```python {name}\n(.*?)```", README, re.DOTALL)
        code = code.replace("redis://127.0.0.1:6379/", server.url.removesuffix("0"))
        # A module that can be imported, as RQ looks its functions up by name.
        module = types.ModuleType(f"recipe_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        names = vars(module)
        exec(compile(code, f"README.md, {name}", "exec"), names)
        if "store" in names:
            request.addfinalizer(names["store"].close)
        return names

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_celery(recipe):
    pytest.importorskip("celery")
    names = recipe("celery")
    names["app"].conf.task_always_eager = True
    reply, store = names["reply"], names["store"]
    assert reply.delay("celery:7", "hello").get() == "hello: done"
    assert store.get("celery:7") == "5f2c9a"
    store.acquire("celery:8")
    with pytest.raises(pytest.importorskip("celery.exceptions").Retry):
        reply.apply(args=["celery:8", "hello"], throw=True, retries=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rq(recipe, server):
    rq = pytest.importorskip("rq")
    import redis

    names = recipe("rq")
    with redis.Redis.from_url(server.url) as connection:
        queue = rq.Queue(connection=connection, is_async=False)
        job = queue.enqueue(names["reply"], "rq:7", "hello")
        assert job.return_value() == "hello: done"
    assert names["store"].get("rq:7") == "5f2c9a"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fastapi(recipe, server):
    pytest.importorskip("httpx")
    testclient = pytest.importorskip("fastapi.testclient")
    from redis_sessions import SessionStore

    app = recipe("fastapi")["app"]
    with testclient.TestClient(app) as client, SessionStore.from_url(server.url) as store:
        first, second = (client.post("/chat/7", params={"prompt": "hello"}) for _ in range(2))
        assert first.json() == {"answer": "hello: done", "remembers": False}
        assert second.json() == {"answer": "hello: done", "remembers": True}
        store.acquire("chat:8")
        held = client.post("/chat/8", params={"prompt": "hello"})
        assert (held.status_code, held.headers["Retry-After"]) == (409, "1")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.split()[1])
def test_in_a_shell(script, server, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-sessions").write_text(f'#!/bin/sh\nexec {sys.executable} -m redis_sessions.cli "$@"\n')
    (programs / "claude").write_text(CLAUDE)
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "sessions.json").write_text('{"chat:7": {"id": "5f2c9a", "last_used_at": 1732250000000}, "bad": "-x"}')
    for line in script.splitlines():
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "REDIS_SESSIONS_URL": server.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # 1 is «done in part»: one entry is no session ID.
        assert done.returncode == int(" import " in line), done.stderr
    if "triage" in script:
        assert json.loads((tmp_path / "triage.jsonl").read_text())["session_id"] == "5f2c9a"
    else:
        assert list(json.loads((tmp_path / "rejects.json").read_text())) == ["bad"]
        assert (tmp_path / "sessions.json.new").exists()
