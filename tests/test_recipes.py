"""What the README tells to type and to paste, run as it stands there: with Celery, RQ and FastAPI, and in a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from redis_sessions import AccessDenied, SessionStore
from redis_sessions.cli.app import app
from redis_sessions.server import EmbeddedServer

README = (Path(__file__).parent.parent / "README.md").read_text()
# The others make a virtual environment.
SCRIPTS = [script for script in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "-m venv" not in script]
SESSION_ID = "5f2c9a7e-1d3b-4c58-8f60-2b7a9c4e6d15"
# What Claude Code prints in the end; the arguments it was given come back as its answer.
CLAUDE = f"""#!/bin/sh
printf '{{"type": "result", "subtype": "success", "is_error": false, "session_id": "{SESSION_ID}", "result": "%s"}}\\n' "$*"
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
    application = recipe("fastapi")["app"]
    with testclient.TestClient(application) as client, SessionStore.from_url(server.url) as store:
        first, second = (client.post("/chat/7", params={"prompt": "hello"}) for _ in range(2))
        assert first.json() == {"answer": "hello: done", "remembers": False}
        assert second.json() == {"answer": "hello: done", "remembers": True}
        store.acquire("chat:8")
        held = client.post("/chat/8", params={"prompt": "hello"})
        assert (held.status_code, held.headers["Retry-After"]) == (409, "1")


class Shell:
    """A shell with `redis-sessions` and a stand-in for `claude` on its PATH."""

    def __init__(self, folder, url):
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        (programs / "redis-sessions").write_text(f'#!/bin/sh\nexec {sys.executable} -m redis_sessions.cli "$@"\n')
        (programs / "claude").write_text(CLAUDE)
        for program in programs.iterdir():
            program.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "REDIS_SESSIONS_URL": url}

    def paste(self, script):
        """The exit code of each line, in one shell."""
        lines = "".join(f"{line}\necho $? >> codes\n" for line in script.splitlines())
        done = subprocess.run(
            ["sh", "-c", lines],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        codes = [int(code) for code in (self.folder / "codes").read_text().split()]
        (self.folder / "codes").unlink()
        return codes, done.stdout


@pytest.fixture
def shell(tmp_path, server):
    return Shell(tmp_path, server.url)


def script(words):
    [found] = [script for script in SCRIPTS if words in script]
    return found


def test_all_that_is_to_be_pasted_is_pasted_here():
    pasted = {script(words) for words in ("--timeout 1h", "redis-sessions acl", "redis-sessions import", "nightly:triage")}
    assert pasted == set(SCRIPTS)


@pytest.mark.parametrize("words", ["--timeout 1h", "nightly:triage"])
def test_running_an_agent(shell, words):
    codes, printed = shell.paste(script(words))
    assert set(codes) == {0}
    printed += "".join(file.read_text() for file in shell.folder.glob("*.jsonl"))
    assert json.loads(printed)["session_id"] == SESSION_ID
    key = re.search(r"(?:KEY=|run )([a-z]\S+)", script(words))[1]
    assert shell.paste(f"redis-sessions get {key}") == ([0], f"{SESSION_ID}\n")


def test_the_users_of_a_server(shell):
    assert shell.paste(script("redis-sessions acl")) == ([0, 0, 0, 0], "")
    with (
        EmbeddedServer(extra={"aclfile": str(shell.folder / "users.acl")}) as guarded,
        SessionStore.from_url(guarded.url) as store,
        pytest.raises(AccessDenied),
    ):
        store.get("k")


def test_coming_from_sessions_json_and_going_back(shell):
    # 1 is «done in part»: one entry is no session ID.
    codes, printed = shell.paste(script("redis-sessions import"))
    assert codes == [0, 1, 1, 0, 0]
    assert "live" in printed
    assert list(json.loads((shell.folder / "rejects.json").read_text())) == ["chat:9"]
    assert json.loads((shell.folder / "sessions.json.new").read_text())["chat:8"]["id"] == "0190c3e2"


INLINE = re.findall(r"`redis-sessions ([^`]+)`", README)


@pytest.mark.parametrize("line", INLINE)
def test_a_command_in_the_text_is_one(line):
    """It is not run, but its name, its options and the number of its arguments are right."""
    name, *words = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, words)


def test_there_are_commands_in_the_text():
    assert len(INLINE) > 20
