"""The password of a store in a file of its own, as containers are given one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from redis_sessions.errors import InvalidSettings

PASSWORD_FILE_VARIABLE: Final = "REDIS_SESSIONS_PASSWORD_FILE"  # noqa: S105 - a name


def read_password(file: Path | None) -> str | None:
    """The first line of the file, None without one. Raises InvalidSettings, which shows nothing of it."""
    if file is None:
        return None
    remedy = f"name a file with the password in its only line, in {PASSWORD_FILE_VARIABLE} or --password-file"
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidSettings(f"{file} can't be read ({error.strerror})", remedy=remedy) from None
    except UnicodeDecodeError:
        raise InvalidSettings(f"{file} is not UTF-8", remedy=remedy) from None
    if len(lines) != 1 or not lines[0]:
        raise InvalidSettings(f"{file} has {len(lines)} lines, not one password", remedy=remedy)
    return lines[0]
