"""The ACL file: it contains no password, nothing can be injected, and a server loads what its users wrote."""

from __future__ import annotations

import os
import re

import pytest

from redis_sessions import (
    InvalidSettings,
    Lease,
    SessionStore,
)
from redis_sessions.cli import exit_codes as exits
from redis_sessions.client.url import read_password
from redis_sessions.operations.acl import USERS, acl_lines
from redis_sessions.server import EmbeddedServer
from tests.acl.users import HASHES, VARIABLES, commands_of
from tests.servers import is_redis_6
from tests.stores import PATIENT
from tests.test_cli_support import run


class TestLines:
    def test_redis_6_gets_no_read_only_pattern(self):
        assert any("%R~sessions:id:*" in line for line in acl_lines())
        assert not any("%" in line for line in acl_lines(read_only_keys=False))

    @pytest.mark.parametrize("namespace", ["", "a b", "a*", "a?", "a[b]", "a\n", "a:b", "ä", "x" * 129, "%R~a"])
    def test_no_glob_space_or_line_break_in_a_namespace(self, namespace):
        with pytest.raises(InvalidSettings):
            acl_lines(namespace)
        run("acl", "--namespace", namespace, code=exits.USAGE)

    def test_user_report_has_no_command_that_writes(self, guarded):
        with guarded.connection("operator") as send:
            writing = {name for name, _, flags in commands_of(send) if "write" in flags}
        assert "set" in writing
        assert not USERS["report"].commands & writing


class TestPrinted:
    def test_only_hashes_of_passwords(self):
        shown = run("acl", env=VARIABLES)
        assert "s3cret" not in shown.output
        for user, password_hash in HASHES.items():
            assert f"\nuser {user} on #{password_hash} " in shown.stdout

    def test_a_user_without_a_password_is_off(self):
        shown = run("acl", env={"REDIS_SESSIONS_WORKER_PASSWORD": "x" * 20, "REDIS_SESSIONS_ADMIN_PASSWORD": ""})
        lines = shown.stdout.splitlines()
        assert [line.split()[1:3] for line in lines] == [
            ["default", "off"],
            ["worker", "on"],
            ["report", "off"],
            ["admin", "off"],
        ]
        said = shown.stderr.splitlines()
        assert [re.search(r"set (\w+)$", line)[1] for line in said] == [
            "REDIS_SESSIONS_REPORT_PASSWORD",
            "REDIS_SESSIONS_ADMIN_PASSWORD",
        ]

    def test_passwords_that_are_too_short(self):
        shown = run("acl", env=VARIABLES | {"REDIS_SESSIONS_ADMIN_PASSWORD": "s3cret"})
        assert "s3cret" not in shown.output
        assert shown.stderr == (
            "redis-sessions: the password of admin can be guessed from its hash: use 20 random characters or more\n"
        )

    def test_options(self):
        printed = run("acl", "--namespace", "a@b", "--cluster", "--redis-6", env=VARIABLES).stdout.splitlines()
        assert printed == acl_lines("a@b", password_hashes=HASHES, cluster=True, read_only_keys=False)
        assert all("+cluster|slots" in line and " ~a@b:" in line for line in printed[1:])

    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_generated(self, tmp_path, umask):
        directory = tmp_path / "new"
        before = os.umask(umask)
        try:
            shown = run("acl", "--generate", directory, "--namespace", "a@b", env=VARIABLES)
        finally:
            os.umask(before)
        files = [directory / "users.acl", *(directory / f"{user}.password" for user in (*USERS, "operator"))]
        assert shown.stdout.splitlines() == [str(file) for file in files]
        assert set(tmp_path.rglob("*")) == {directory, *files}
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        passwords = [file.read_text().strip() for file in files[1:]]
        assert len({*passwords, *VARIABLES.values()}) == 7
        assert all(len(password) >= 43 for password in passwords)
        assert not any(password in text for password in passwords for text in (shown.output, files[0].read_text()))
        with EmbeddedServer(extra={"aclfile": str(files[0])}) as server:
            for user, password in zip((*USERS, "operator"), passwords, strict=True):
                file = directory / f"{user}.password"
                url = server.url.replace("//", f"//{user}@")
                assert read_password(file) == password
                run("failures", "--url", url, "--password-file", file, "--namespace", "a@b")
            assert "unknown" not in {
                line.split()[0]
                for line in run("doctor", "--url", url, "--password-file", file, code=1).stdout.splitlines()[:-2]
            }
            run("failures", "--url", server.url, "--namespace", "a@b", code=exits.UNREACHABLE)

    @pytest.mark.parametrize("kind", ["full", "file", "link", "nowhere"])
    def test_generated_over_nothing(self, tmp_path, kind):
        target = tmp_path / "old"
        target.mkdir()
        (target / "worker.password").write_text("s3cret")
        directory = {"full": target, "file": target / "worker.password", "nowhere": tmp_path / "a/b"}.get(
            kind, tmp_path / "l"
        )
        if kind == "link":
            directory.symlink_to(target)
        before = sorted(tmp_path.rglob("*"))
        run("acl", "--generate", directory, code=exits.USAGE)
        assert sorted(tmp_path.rglob("*")) == before
        assert (target / "worker.password").read_text() == "s3cret"


def test_saves_survive_a_restart(binary, tmp_path):
    """Redis loads its append-only file as the default user, and drops commands that it may not run."""
    (tmp_path / "users.acl").write_text(
        "\n".join(acl_lines(password_hashes=HASHES, read_only_keys=not is_redis_6(binary))) + "\n"
    )
    extra = {"aclfile": str(tmp_path / "users.acl")}
    with EmbeddedServer(directory=tmp_path / "data", binary=binary, extra=extra) as server:
        url = server.url.replace("//", "//worker:s3cret%2Frandom-enough-worker@")
        with SessionStore.from_url(url, PATIENT) as store:
            assert store.save(store.acquire("leased"), "ID-1")
            store.set("set", "ID-2")
            held = store.acquire("held")
            assert isinstance(held, Lease)
        server.stop()
        server.start()
        with SessionStore.from_url(url, PATIENT) as store:
            assert (store.get("leased"), store.get("set")) == ("ID-1", "ID-2")
            assert store.acquire("held").holder == held.token
