"""`acl`: print an ACL file with users that have only the permissions they need."""

import hashlib
import os
from typing import Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import NAMESPACE_VARIABLE, value

# An environment variable, not an option: other users can read a command line.
VARIABLE: Final = "REDIS_SESSIONS_{}_PASSWORD"

# 20 characters of Base64 are 120 bits: too many to try, even though SHA-256 is fast.
LONG: Final = 20


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
    redis_6: Annotated[bool, typer.Option("--redis-6", help="For Redis 6.2, which has no read-only key patterns.")] = False,
) -> int:
    """Print an ACL file of least privilege.

    It has three users: worker runs conversations; report scans, lists and exports, and can't write; admin also imports. The
    default user is off, so add a user of your own to the file for operating the server, its replicas and Sentinel.
    Passwords come from REDIS_SESSIONS_WORKER_PASSWORD, REDIS_SESSIONS_REPORT_PASSWORD and REDIS_SESSIONS_ADMIN_PASSWORD.
    Only their SHA-256 is printed, so use long random ones; a user without one is off. Users that scan can see the names,
    but not the values, of other keys on that server.

    Examples:
      redis-sessions acl > users.acl && redis-server --aclfile users.acl
      redis-sessions acl --namespace sessions.claude@build-7 --cluster
    """
    from redis_sessions.operations.acl import USERS, acl_lines

    passwords = {name: os.environb.get(VARIABLE.format(name.upper()).encode()) for name in USERS}
    hashes = {name: hashlib.sha256(password).hexdigest() for name, password in passwords.items() if password}
    for line in acl_lines(namespace or "sessions", password_hashes=hashes, cluster=cluster, read_only_keys=not redis_6):
        show.put(line)
    for name, password in passwords.items():
        if not password:
            show.complain(f"{name} is off, it has no password: set {VARIABLE.format(name.upper())}")
        elif len(password) < LONG:
            show.complain(f"the password of {name} can be guessed from its hash: use {LONG} random characters or more")
    return exits.DONE
