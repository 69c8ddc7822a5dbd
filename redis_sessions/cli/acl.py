"""`acl`: print an ACL file with users that have only the permissions they need, or write it with new passwords."""

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import NAMESPACE_VARIABLE, value
from redis_sessions.errors import FileNotWritten

# An environment variable, not an option: other users can read a command line.
VARIABLE: Final = "REDIS_SESSIONS_{}_PASSWORD"

# 20 characters of Base64 are 120 bits: too many to try, even though SHA-256 is fast.
LONG: Final = 20

# The user that --generate adds: somebody must be able to operate the server, and the default user is off.
OPERATOR: Final = "operator"


def acl(
    *,
    namespace: Annotated[
        list[str] | None,
        value(
            "--namespace",
            "NAME",
            "First part of every key; the users can't read others. Repeat it to grant each user several namespaces, as an "
            "exporter of several needs. Default: sessions.",
            envvar=NAMESPACE_VARIABLE,
        ),
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="For the nodes of a cluster.")] = False,
    replicas: Annotated[
        bool, typer.Option("--replicas", help="Grant WAIT too, for stores whose saves wait for replicas.")
    ] = False,
    redis_6: Annotated[bool, typer.Option("--redis-6", help="For Redis 6.2, which has no read-only key patterns.")] = False,
    generate: Annotated[
        Path | None,
        value(
            "--generate",
            "DIR",
            "Instead of printing: create DIR, with users.acl and a new random password for each user in USER.password, and "
            f"with a user {OPERATOR} who may do everything. Nothing is overwritten.",
        ),
    ] = None,
) -> int:
    """Print an ACL file of least privilege.

    It has three users: worker runs conversations; report scans, lists and exports, and can't write; admin also imports. The
    default user is off, so add a user of your own to the file for operating the server, its replicas and Sentinel.
    Passwords come from REDIS_SESSIONS_WORKER_PASSWORD, REDIS_SESSIONS_REPORT_PASSWORD and REDIS_SESSIONS_ADMIN_PASSWORD.
    Only their SHA-256 is printed, so use long random ones; a user without one is off. Users that scan can see the names,
    but not the values, of other keys on that server.

    Examples:
      redis-sessions acl --generate passwords && redis-server --aclfile passwords/users.acl
      redis-sessions acl --namespace sessions.claude@build-7 --cluster > users.acl
    """
    from redis_sessions.operations.acl import USERS, acl_lines

    def lines(hashes: Mapping[str, str]) -> list[str]:
        return acl_lines(
            namespace or "sessions", password_hashes=hashes, cluster=cluster, read_only_keys=not redis_6, replicas=replicas
        )

    if generate is not None:
        for file in _generate(generate, USERS, lines):
            show.put(str(file))
        return exits.DONE
    passwords = {name: os.environb.get(VARIABLE.format(name.upper()).encode()) for name in USERS}
    for line in lines({name: _hash(password) for name, password in passwords.items() if password}):
        show.put(line)
    for name, password in passwords.items():
        if not password:
            show.complain(f"{name} is off, it has no password: set {VARIABLE.format(name.upper())}")
        elif len(password) < LONG:
            show.complain(f"the password of {name} can be guessed from its hash: use {LONG} random characters or more")
    return exits.DONE


def _hash(password: bytes) -> str:
    return hashlib.sha256(password).hexdigest()


def _generate(directory: Path, users: Iterable[str], lines: Callable[[Mapping[str, str]], list[str]]) -> list[Path]:
    """Write the ACL file and the passwords into a new directory, whole or not at all; only its owner can read them.

    Raises FileNotWritten, also if the directory exists already and is not empty.
    """
    passwords = {name: secrets.token_urlsafe(32) for name in (*users, OPERATOR)}
    hashes = {name: _hash(password.encode()) for name, password in passwords.items()}
    operator = f"user {OPERATOR} on #{hashes[OPERATOR]} ~* &* +@all"
    texts = {
        "users.acl": "\n".join([*lines(hashes), operator]),
        **{f"{name}.password": passwords[name] for name in passwords},
    }
    try:
        draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            for name, text in texts.items():
                (draft / name).touch(0o600)
                (draft / name).write_text(f"{text}\n", "ascii")
            draft.rename(directory)  # replaces nothing but an empty directory
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        remedy = "name a new directory in one that exists, or move the old one away"
        raise FileNotWritten(f"{directory} can't be written ({error.strerror})", remedy=remedy) from None
    return [directory / name for name in texts]
