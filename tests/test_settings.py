"""StoreSettings: defaults, what is refused and how the error says it, and the JSON file that some of them may come from."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re

import pytest

from redis_sessions import InvalidSettings, StoreSettings
from tests.over import over


def test_the_defaults():
    settings = StoreSettings()
    assert (settings.namespace, settings.session_max_age_ms, settings.lease_ms) == ("sessions", 86_400_000, 30_000)


def test_they_are_immutable_and_each_name_says_its_unit():
    settings = StoreSettings()
    with pytest.raises(InvalidSettings, match=r"session_max_age_ms can't be set: settings\.model_copy"):
        settings.session_max_age_ms = 1
    assert settings == StoreSettings()
    assert all(
        name.endswith("_ms")
        or name in {"namespace", "scan_count", "batch_size", "max_connections", "give_up_after", "records", "replicas"}
        or name in {"max_turns", "max_context_tokens"}
        for name in StoreSettings.model_fields
    )


@over(
    "wrong",
    [
        {"session_max_age_ms": 0},
        {"session_max_age_ms": -1},
        {"session_max_age_ms": 1.5},
        {"session_max_age_ms": "1"},
        {"session_max_age_ms": True},
        {"session_max_age_ms": 2**62},
        {"lease_ms": 0},
        {"namespace": ""},
        {"namespace": "a:b"},
        {"namespace": "a*"},
        {"namespace": "a\n"},
        {"namespace": "a" * 129},
        {"max_age": 1},
    ],
)
def test_an_invalid_value_is_refused_by_name(wrong):
    with pytest.raises(InvalidSettings) as caught:
        StoreSettings(**wrong)
    assert next(iter(wrong)) in str(caught.value)


@over(
    ("wrong", "says"),
    [
        ({"max_age_ms": 1}, "'max_age_ms' is not a setting: did you mean session_max_age_ms?"),
        ({"url": 1}, "'url' is not a setting: there are namespace, session_max_age_ms, "),
        (
            {"session_max_age_ms": 0},
            "session_max_age_ms is 0: give a whole number of milliseconds, 1 to 3155760000000, default: 86400000",
        ),
        ({"lease_ms": "30s"}, "lease_ms is the text '30s': give a whole number of milliseconds, "),
        ({"lease_ms": {"password": "s3cret"}}, "lease_ms is a dict: "),
        ({"lease_ms": "s3cret"}, "lease_ms is text of 6 characters: "),
        ({"lease_ms": 10**5000}, "lease_ms is too large or too small: "),
        ({"scan_count": 0}, "scan_count is 0: give a whole number, 1 to 100000, default: 1000"),
        ({"namespace": "a:b"}, "namespace is text with ':' in it: give 1 to 128 of A-Z a-z 0-9 _ . @ -, default: sessions"),
        ({"namespace": "redis://u:s3cret@h"}, "namespace is text with ':' in it: "),
        ({"namespace": "ä"}, r"namespace is text with '\xe4' in it: "),
        ({"namespace": ""}, "namespace is text of 0 characters: "),
        ({"namespace": None}, "namespace is None: "),
    ],
)
def test_a_refusal_says_what_was_given_and_what_to_give(wrong, says):
    with pytest.raises(InvalidSettings) as caught:
        StoreSettings(**wrong)
    assert str(caught.value).startswith(says)
    assert "s3cret" not in str(caught.value)


@over("name", StoreSettings.model_fields)
def test_every_one_is_checked(name):
    nothing = 0 if StoreSettings.model_fields[name].default is None else None
    for wrong in (-1, 2**62, 1.0, nothing, [1], "yes" if name == "records" else True):
        with pytest.raises(InvalidSettings, match=f"{name} .*: give "):
            StoreSettings(**{name: wrong})


def test_a_copy_is_checked_too():
    settings = StoreSettings(namespace="a")
    other = settings.model_copy(update={"lease_ms": 5})
    assert (other.namespace, other.lease_ms, settings.lease_ms) == ("a", 5, 30_000)
    assert other.model_fields_set == {"namespace", "lease_ms"}, "so that a reader's own max age is told from the default"
    assert pickle.loads(pickle.dumps(other)) == copy.deepcopy(other) == other
    for wrong in ({"lease_ms": 0}, {"lease": 5}):
        with pytest.raises(InvalidSettings):
            settings.model_copy(update=wrong)


def test_a_subclass_may_have_settings_of_its_own():
    class Mine(StoreSettings):
        color: str = "red"
        depth: int = 1

    assert Mine(color="blue", lease_ms=5).model_copy(update={"depth": 2}) == Mine(color="blue", lease_ms=5, depth=2)
    with pytest.raises(InvalidSettings, match=r"depth: .*integer"):
        Mine(depth="deep")
    with pytest.raises(InvalidSettings, match="lease_ms is 0"):
        Mine(lease_ms=0)
    with pytest.raises(InvalidSettings, match="did you mean color"):
        Mine(colour="blue")


def test_settings_that_are_not_given_by_name():
    with pytest.raises(InvalidSettings, match="by name"):
        StoreSettings.model_validate(7)


def test_every_setting_is_documented_with_its_unit_and_its_default():
    said = inspect.getdoc(StoreSettings)
    for name, field in StoreSettings.model_fields.items():
        [what] = re.findall(rf"^    {name}: (.*?)(?=^    \w+: |^\S)", said, re.MULTILINE | re.DOTALL)
        assert re.search(rf'"?{field.default}"?\b', what), name
        assert name.endswith("_ms") == what.startswith("milliseconds"), name


def test_limits_that_nothing_could_keep():
    with pytest.raises(InvalidSettings, match="max_turns is kept by the record, and records is False"):
        StoreSettings(max_turns=5, records=False)


class TestFromJsonFile:
    @pytest.fixture
    def file(self, tmp_path):
        def write(document):
            path = tmp_path / "agents.json"
            path.write_text(document if isinstance(document, str) else json.dumps(document))
            return path

        return write

    @over("name", ["session_max_age_ms", "sessionMaxAgeMs"])
    def test_it_takes_the_max_age_in_either_spelling_and_ignores_the_rest(self, file, name):
        path = file({name: 3_600_000, "agents": [{"name": "claude"}], "namespace": 7})
        assert StoreSettings.from_json_file(path).session_max_age_ms == 3_600_000
        assert StoreSettings.from_json_file(str(path), namespace="x").namespace == "x"

    def test_without_one_the_default_applies(self, file):
        assert StoreSettings.from_json_file(file({})).session_max_age_ms == 86_400_000

    def test_the_limits_of_a_session_may_be_in_it_too(self, file):
        path = file({"maxTurns": 40, "max_lifetime_ms": 5, "maxContextTokens": 150_000})
        settings = StoreSettings.from_json_file(path, max_turns=None)
        assert (settings.max_turns, settings.max_lifetime_ms, settings.max_context_tokens) == (None, 5, 150_000)
        with pytest.raises(InvalidSettings, match=r"agents\.json: maxTurns is 0: give a whole number"):
            StoreSettings.from_json_file(file({"maxTurns": 0}))

    def test_a_byte_order_mark_is_skipped(self, file):
        assert StoreSettings.from_json_file(file('\ufeff{"max_turns": 3}')).max_turns == 3

    def test_an_override_takes_precedence(self, file):
        path = file({"session_max_age_ms": 5})
        assert StoreSettings.from_json_file(path, session_max_age_ms=7).session_max_age_ms == 7

    @over("value", [0, -5, 1.5, 3600.0, "3600000", True, None, [1], {"token": "s3cret"}, 10**30])
    @over("name", ["session_max_age_ms", "sessionMaxAgeMs"])
    def test_an_invalid_max_age_names_file_and_field_and_shows_no_secret(self, file, name, value):
        path = file({name: value})
        with pytest.raises(InvalidSettings) as caught:
            StoreSettings.from_json_file(path)
        assert str(path) in str(caught.value)
        assert name in str(caught.value)
        assert "s3cret" not in str(caught.value)

    def test_two_spellings_that_disagree(self, file):
        with pytest.raises(InvalidSettings, match="disagree"):
            StoreSettings.from_json_file(file({"session_max_age_ms": 5, "sessionMaxAgeMs": 6}))
        assert StoreSettings.from_json_file(file({"session_max_age_ms": 5, "sessionMaxAgeMs": 5})).session_max_age_ms == 5

    @over("text", ["", "{", "[]", "7", '{"a": 1} x', "[" * 100_000])
    def test_a_file_that_is_not_an_object(self, file, text):
        with pytest.raises(InvalidSettings, match=r"agents\.json"):
            StoreSettings.from_json_file(file(text))

    def test_a_file_that_is_missing_or_not_text(self, tmp_path):
        with pytest.raises(InvalidSettings, match="No such file"):
            StoreSettings.from_json_file(tmp_path / "no.json")
        (tmp_path / "agents.json").write_bytes(b"\xff")
        with pytest.raises(InvalidSettings):
            StoreSettings.from_json_file(tmp_path / "agents.json")
