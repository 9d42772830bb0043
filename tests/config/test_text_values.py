"""Config values that are text: gptcli keeps them as the user typed them.

It saves them unchanged. It refuses most Windows paths in double quotes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli import text_values
from gptcli.config import Config, DataConfig
from gptcli.config_files import dump_config, parse_config
from gptcli.errors import GptcliError
from gptcli.text_values import takes_text, text_of_override


def source(override: str) -> object:
    return parse_config("", [override]).data.source


@pytest.mark.parametrize(
    "name",
    [
        "x #2.txt", "08", "2024", "1e5", "0x1F", "true", "null", "~", "#1.txt", "[draft] x.txt",
        "[a, b].txt", "@x", "*x", "&x", "!x", "{a}.txt", "{a: b}", "- x", "-", "|", ">x",
        "Mr. X: a life.txt", "it's.txt", "'a' and 'b'", '"a" and "b"', " x ", "C:\\texts\\new.txt",
        "a\tb", "a\u0085b", "\u2028", "2024-01-02", "=", "<<", "'", "a=b", "%20", "`x`", "🎉",
    ],
)  # fmt: skip
def test_the_value_of_a_text_key_is_taken_as_typed(name: str) -> None:
    assert source(f"data.source={name}") == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("'x #2.txt'", "x #2.txt"),
        ("'it''s.txt'", "it's.txt"),
        ('"a\\u0041\\"b"', 'aA"b'),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"a\u2028b"', "a\u2028b"),
        ('"\\x41"', "A"),
        ("'\"x\"'", '"x"'),
    ],
)
def test_a_value_in_quotes_is_the_text_inside(value: str, text: str) -> None:
    assert source(f"data.source={value}") == text


def test_keys_that_take_no_text_are_yaml_as_before() -> None:
    config = parse_config("", ["tokenizer.kind=byte # a comment", "train.patience=null"])
    assert (config.tokenizer.kind, config.train.patience) == ("byte", None)
    assert takes_text(("data", "source"))
    for key in ("tokenizer.kind", "train.learning_rate", "run.compile", "data", "data.sourc"):
        assert not takes_text(tuple(key.split(".")))


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("[a.txt, b.txt]", ["a.txt", "b.txt"]),
        ('["a #1.txt", 08, true]', ["a #1.txt", "08", "true"]),
        ("[draft] x.txt", "[draft] x.txt"),
        ("[a: b]", "[a: b]"),
        ("[[a]]", "[[a]]"),
        ("[", "["),
        ("null", None),
        ("", None),
        ("'null'", "null"),
        ("08", "08"),
    ],
)
def test_a_key_that_may_be_a_list_or_null(
    value: str, taken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = frozenset({"text", "list", "null"})
    monkeypatch.setattr(text_values, "_forms", lambda key: forms)
    assert text_of_override(f"data.val_source={value}", ("data", "val_source"), value) == taken


def test_an_existing_file_with_the_name_of_a_list_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_values, "_forms", lambda key: frozenset({"text", "list"}))
    (tmp_path / "[a]").mkdir()
    assert text_of_override("data.source=[a]", ("data", "source"), "[a]") == "[a]"
    assert text_of_override("data.source=[b]", ("data", "source"), "[b]") == ["b"]


@pytest.mark.parametrize("written", ["08", "2024", "true", "1e5", "=", "0x1F", "2024-01-02"])
def test_a_text_key_in_a_file_can_look_like_a_number(written: str) -> None:
    assert parse_config(f"data:\n  source: {written}\n").data.source == written
    assert source(f"data={{source: {written}}}") == written


@given(st.text(min_size=1))
def test_every_text_survives_being_written_and_read(text: str) -> None:
    config = Config(data=DataConfig(source=text))
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    "text",
    ["08", "1e5", "3e-4", "1_000", "=", "<<", "~", "Null", "yes", "0o17", ".5", "5.", "1:30",
     " x", "x ", "- a", "\u0085", "a\u0085b", "\u2028", "\ufeffx", "x\ty", "a\nb", "a\rb", "C:\nx",
     "\x7f", "\x1b[31m", "e5", "!!str a", "'", '"', "a: b", "# x", "\\n", "C:\\n\\t", ".inf"],
)  # fmt: skip
def test_a_text_that_yaml_would_change_survives(text: str) -> None:
    config = Config(data=DataConfig(source=text))
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("path", ["C:\\texts\\new.txt", "C:\\Users\\me.txt", "d:\\a b\\x.txt"])
def test_a_windows_path_in_double_quotes_is_an_error(path: str) -> None:
    for text, overrides, place in (
        (f'data:\n  source: "{path}"\n', [], "mine.yaml:2"),
        ("", [f'data.source="{path}"'], f'data.source="{path}"'),
    ):
        with pytest.raises(GptcliError) as caught:
            parse_config(text, overrides, name="mine.yaml")
        assert caught.value.message.startswith(f"{place}: ")
        hint = caught.value.hint or ""
        assert "single quotes" in hint
        assert "/" in hint
    for right in (f"'{path}'", path, '"' + path.replace("\\", "\\\\") + '"'):
        assert parse_config(f"data:\n  source: {right}\n").data.source == path


def test_an_unknown_escape_names_the_backslash() -> None:
    with pytest.raises(GptcliError) as caught:
        parse_config('data:\n  source: "texts\\my.txt"\n', name="mine.yaml")
    assert caught.value.message.startswith("mine.yaml:2: not valid YAML: found unknown escape")
    assert "backslash" in (caught.value.hint or "")
    with pytest.raises(GptcliError, match="backslash in double quotes"):
        source('data.source="texts\\my.txt"')
