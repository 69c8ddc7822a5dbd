"""The options that every command on a store has, defined once, and the store that they lead to."""

import functools
import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final

import typer

from redis_sessions.cli import output as show
from redis_sessions.client.url import PASSWORD_FILE_VARIABLE, read_password
from redis_sessions.text import parse_duration_ms

if TYPE_CHECKING:
    from redis_sessions.settings import StoreSettings
    from redis_sessions.store import SessionStore

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
URL_VARIABLES: Final = ("REDIS_SESSIONS_URL", "REDIS_URL")
AGENTS_VARIABLE: Final = "REDIS_SESSIONS_AGENTS"


def value(name: str, metavar: str, text: str, **more: Any) -> Any:
    """An option that takes a value; `more` are further arguments of `typer.Option`."""
    return typer.Option(name, metavar=metavar, help=text, **more)


Key = Annotated[str, typer.Argument(metavar="KEY", help="The conversation, such as acme/shop#42:reviewer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
URL: Final = (
    "Where Redis is: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://. Other users can read a command "
    "line: give a password in the environment."
)
PASSWORD: Final = "File with the password of the URL's user, if the URL has none."  # noqa: S105 - a help text
NAMESPACE: Final = "First part of every key. Workers that don't share host, home and agent use separate ones."
MAX_AGE: Final = "How long an ID may stay unused: 500ms, 30s, 90m, 24h, 7d."
CONFIG: Final = "JSON file with session_max_age_ms (or sessionMaxAgeMs) at its top level."


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the store is and how it behaves, as given on the command line."""

    url: Annotated[str, value("--url", "URL", URL, envvar=list(URL_VARIABLES))] = DEFAULT_URL
    password_file: Annotated[Path | None, value("--password-file", "FILE", PASSWORD, envvar=PASSWORD_FILE_VARIABLE)] = None
    namespace: Annotated[
        str | None,
        value("--namespace", "NAME", NAMESPACE, envvar="REDIS_SESSIONS_NAMESPACE", show_default="sessions"),
    ] = None
    max_age: Annotated[
        str | None,
        value("--max-age", "TIME", MAX_AGE, envvar="REDIS_SESSIONS_MAX_AGE", show_default="as in --config, or 24h"),
    ] = None
    config: Annotated[Path | None, value("--config", "FILE", CONFIG, envvar="REDIS_SESSIONS_CONFIG")] = None
    as_json: Json = False

    def settings(self) -> "StoreSettings":
        """The store's settings. Raises InvalidSettings."""
        from redis_sessions.settings import StoreSettings

        given: dict[str, Any] = {} if self.namespace is None else {"namespace": self.namespace}
        if self.max_age is not None:
            given["session_max_age_ms"] = parse_duration_ms(self.max_age, "--max-age")
        if self.config is None:
            return StoreSettings(**given)
        settings = StoreSettings.from_json_file(self.config, **given)
        if "session_max_age_ms" not in settings.model_fields_set:
            show.complain(f"{self.config} has no session_max_age_ms at its top level: the max age is 24h")
        return settings

    def put_result(self, result: Any, shown: Callable[[], object]) -> None:
        """Same as the function in output."""
        show.put_result(result, shown, as_json=self.as_json)

    def store(self, **changed: Any) -> "SessionStore":
        """The store, for use in a `with`, with some settings changed; it connects at its first operation.

        Raises InvalidSettings.
        """
        from redis_sessions.store import SessionStore

        return SessionStore.from_url(
            self.url, self.settings().model_copy(update=changed), password=read_password(self.password_file)
        )


def register_users_runtimes() -> None:
    """Make the runtimes of the directory that REDIS_SESSIONS_AGENTS names known. Raises InvalidSettings."""
    if directory := os.environ.get(AGENTS_VARIABLE):
        from redis_sessions.agents import register_directory

        register_directory(directory)


def on_a_store(command: Callable[Concatenate[Options, ...], int], *, but: Collection[str] = ()) -> Callable[..., int]:
    """Add the common options to a command, after its own; it takes them as its first argument, an Options.

    An option of the command's own, such as a namespace that may be given more than once, replaces the common one of that
    name; those in `but` are left out.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    taken = {*but, *(parameter.name for parameter in own)}
    names = [field.name for field in fields(Options) if field.name not in taken]
    common = [parameter for name, parameter in inspect.signature(Options).parameters.items() if name not in taken]

    @functools.wraps(command)
    def with_options(**given: Any) -> int:
        return command(Options(**{name: given.pop(name) for name in names}), **given)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *common)]
    vars(with_options)["__signature__"] = inspect.Signature(parameters)
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
