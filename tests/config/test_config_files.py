"""YAML files and overrides: the values that gptcli accepts, and its messages about others."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config import Config
from gptcli.config_files import (
    ConfigError,
    differences,
    dump_config,
    find_config,
    is_override,
    json_schema,
    load_config,
    parse_config,
    values_set,
)
from gptcli.config_problems import dotted_keys
from gptcli.config_schema import config_schema
from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_configs, shipped_folder


def about(key: str) -> str:
    """The hint of an error about a value of `key`: the key, and its description in the schema."""
    section, name = key.split(".")
    keys = config_schema()["$defs"][type(getattr(Config(), section)).__name__]["properties"]
    return f"{key}: {' '.join(keys[name]['description'].split())}"


EVAL_EVERY = about("train.eval_every")
WEIGHT_DECAY = about("train.weight_decay")
ARCH = about("model.arch")


def problems(text: str, *overrides: str) -> list[tuple[str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, name="mine.yaml")
    return caught.value.problems


def test_an_empty_config_is_all_defaults() -> None:
    assert parse_config("") == Config() == parse_config("model:\ntrain:\n")


@pytest.mark.parametrize("written", ["3e-4", "3E-4", "0.0003", ".0003", "3.0e-4"])
def test_numbers_with_an_exponent(written: str) -> None:
    assert parse_config(f"train: {{learning_rate: {written}}}").train.learning_rate == 3e-4
    assert parse_config("", [f"train.learning_rate={written}"]).train.learning_rate == 3e-4


def test_a_whole_number_with_an_exponent_counts_steps() -> None:
    assert parse_config("", ["train.max_steps=2e3"]).train.max_steps == 2000


@pytest.mark.parametrize("override", ["model=", "model=null", "train=~"])
def test_a_section_emptied_by_an_override_is_all_defaults(override: str) -> None:
    assert parse_config("model: {n_layer: 2}\ntrain: {seed: 1}", [override, "data="]) == (
        parse_config("train: {seed: 1}" if override.startswith("model") else "model: {n_layer: 2}")
    )


def test_overrides_win_and_are_read_as_yaml() -> None:
    config = parse_config(
        "model: {n_layer: 2}",
        [
            "model.n_layer=6",
            "model.bias=true",
            "model.arch=gpt2",
            "train.patience=null",
            "data.source='a: b'",
        ],
    )
    assert (config.model.n_layer, config.model.bias, config.train.patience) == (6, True, None)
    assert config.data.source == "a: b"


def test_all_problems_are_reported_at_once_with_line_and_nearest_name() -> None:
    found = problems(
        "model:\n  n_embed: 128\n  arch: gtp2\ntrain:\n  batch_size: 0\n  eval_every: -1\n"
        "optimzer: {}\nn_layer: 3\n",
        "train.seeed=1",
        "run.device=cudda",
    )
    assert found == [
        (
            "mine.yaml:3: `model.arch` must be one of `modern`, `gpt2`; got `gtp2`",
            "did you mean `gpt2`?",
        ),
        ("mine.yaml:2: unknown key `model.n_embed`", "did you mean `model.n_embd`?"),
        (
            "mine.yaml:5: `train.batch_size` must be a whole number of at least 1 and at most "
            "1,000,000,000, or `auto`; got `0`",
            "train.batch_size: Sequences in one forward pass. A step has batch_size * grad_accum "
            "sequences. auto: a step has 16 * grad_accum sequences. gptcli splits them into equal "
            "micro-batches that are as large as memory allows. The run's config records the "
            "batch_size and grad_accum that were found.",
        ),
        (
            "mine.yaml:6: `train.eval_every` must be a whole number of at least 1 and at most "
            "1,000,000,000, or `auto`; got `-1`",
            EVAL_EVERY,
        ),
        ("train.seeed=1: unknown key `train.seeed`", "did you mean `train.seed`?"),
        (
            "run.device=cudda: `run.device` must be one of `auto`, `cuda`, `mps`, `cpu`; got "
            "`cudda`",
            "did you mean `cuda`?",
        ),
        ("mine.yaml:7: unknown key `optimzer`", "did you mean `train.optimizer`?"),
        ("mine.yaml:8: unknown key `n_layer`", "did you mean `model.n_layer`?"),
    ]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "model:\n  n_head: 3\n",
            "mine.yaml:2: n_embd 128 (the default) is not divisible by n_head 3",
            "n_head could be 2 or 4, or n_embd could be 126 or 132",
        ),
        (
            "model:\n  bias: true\n",
            "mine.yaml:2: `arch: modern` has no biases",
            "set `bias: false`, or `arch: gpt2`",
        ),
        (
            "model: {n_embd: 12, n_head: 4}",
            "mine.yaml:1: n_embd 12 / n_head 4 is 3, an odd number: rotary "
            "positions turn pairs of channels",
            "n_head could be 3 or 6, or n_embd could be 8 or 16, or `arch: gpt2`",
        ),
        (
            "model: 3",
            "mine.yaml:1: `model` is a section of keys, not a value; got `3`",
            "for example\nmodel:\n  arch: ...",
        ),
        (
            "train:\n  seed: 1\n  seed: 2\n",
            "mine.yaml:3: key `train.seed` is written twice",
            "remove one",
        ),
        (
            'model: {n_layer: "4"}',
            "mine.yaml:1: `model.n_layer` must be a whole number of at least 1 "
            'and at most 1,000; got `"4"`',
            "model.n_layer: Number of blocks.",
        ),
        (
            "train: {weight_decay: .nan}",
            "mine.yaml:1: `train.weight_decay` must be a number of at "
            "least 0 and at most 100; got `nan`",
            WEIGHT_DECAY,
        ),
        (
            "model: {arch: {deep: 1}}",
            "mine.yaml:1: `model.arch` must be one of `modern`, `gpt2`; got `{'deep': 1}`",
            ARCH,
        ),
    ],
)
def test_single_problems(text: str, message: str, hint: str | None) -> None:
    assert problems(text) == [(message, hint)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "mine.yaml:1: not valid YAML"),
        ("- a\n- b\n", "mine.yaml:1: expected `section:` lines"),
        ("a: !!python/object/apply:os.system [ls]", "YAML tag"),
        ("a: !!python/name:os.system", "YAML tag"),
        ("!!python/name:os.system a: 1", "YAML tag"),
        ("a: &x [*x, *x]", "more values or deeper nesting"),
        ("a: " + "[" * 2000, "more values or deeper nesting"),
        ("? [&a [x, x], &b [*a, *a]]\n: 1", "a key must be a plain word"),
        ('a: "\\UFFFFFFFF"', "it cannot be read"),
        ("train: {seed: !!int abc}", "is not a number"),
        ("model: {n_layer: " + "9" * 5000 + "}", "is not a number"),
    ],
)
def test_hostile_yaml_is_an_error_not_a_traceback(text: str, message: str) -> None:
    with pytest.raises(GptcliError, match=message.replace("[", r"\[")):
        parse_config(text, name="mine.yaml")


def test_a_billion_laughs_attack_is_refused_early() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(GptcliError, match="more values or deeper nesting"):
        parse_config("\n".join(lines))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_config_or_a_clear_error(text: str) -> None:
    with suppress(GptcliError):
        parse_config(text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(dotted_keys()), st.text(max_size=20))
def test_any_override_is_a_config_or_a_clear_error(key: str, value: str) -> None:
    with suppress(GptcliError):
        parse_config("", [f"{key}={value}"])


def test_a_dumped_config_is_read_back_unchanged() -> None:
    config = parse_config("", ["train.learning_rate=1e-5", "data.source='über: # x'"])
    assert parse_config(dump_config(config)) == config


def test_differences_are_dotted() -> None:
    other = parse_config("", ["model.n_layer=6", "train.seed=1"])
    assert differences(Config(), other) == {"model.n_layer": (4, 6), "train.seed": (1337, 1)}


def test_an_unknown_config_lists_the_choices() -> None:
    with pytest.raises(GptcliError) as caught:
        find_config("shakespear")
    assert caught.value.message == "no config file or shipped config named `shakespear`"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean `shakespeare`? (shipped configs: course, ")


def test_a_config_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"model: \xff\n")
    with pytest.raises(GptcliError, match=r"not UTF-8 text \(byte 7\)"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("word", "yes"),
    [
        ("model.n_layer=6", True),
        ("x=", True),
        ("my text=1.txt", False),
        ("a/b=c", False),
        ("tiny", False),
        ("=3", False),
    ],
)
def test_what_counts_as_an_override(word: str, yes: bool) -> None:
    assert is_override(word) is yes


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_and_names_the_schema(name: str) -> None:
    path = shipped_configs()[name]
    load_config(name)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    assert lines[1].startswith("# "), "the line that `gptcli configs` shows"


def test_the_promised_configs_are_shipped() -> None:
    assert set(shipped_configs()) >= {
        "shakespeare",
        "tiny",
        "shakespeare-gpu",
        "gpt2-124m",
        "course",
    }


def test_the_shipped_schema_is_up_to_date() -> None:
    assert (shipped_folder("configs") / "schema.json").read_text("utf-8") == json_schema()


def test_every_key_has_a_docstring() -> None:
    import json

    schema = json.loads(json_schema())
    for section in schema["$defs"].values():
        for key, value in section["properties"].items():
            assert value.get("description"), key


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["train.learning_rate=0.01"], {"train.learning_rate": 0.01}),
        (["train={learning_rate: 0.01}"], {"train.learning_rate": 0.01}),
        (["train={learning_rate: 0.01, seed: 2}", "train.seed=3"],
         {"train.learning_rate": 0.01, "train.seed": 3}),
        (["model={}"], {}),
        (
            ["tokenizer="],
            {"tokenizer.kind": "char", "tokenizer.vocab_size": 1024, "tokenizer.from": None},
        ),
        (["train.learning_rate=auto"], {"train.learning_rate": "auto"}),
        ([], {}),
    ],
)  # fmt: skip
def test_the_keys_of_a_whole_section_count_as_set(
    overrides: list[str], values: dict[str, object]
) -> None:
    assert values_set(overrides) == values


@pytest.mark.parametrize(
    ("text", "overrides", "place"),
    [
        ("model: {n_head: 4}", ["model.n_embd=98"], "model.n_embd=98"),
        ("model: {n_embd: 64}", ["model.n_head=3"], "model.n_head=3"),
        ("model: {n_embd: 64}", ["model={n_head: 3}"], "model={n_head: 3}"),
        ("model: {}", ["model.n_head=2", "model.n_embd=33"], "model.n_embd=33"),
        ("model: {}", ["model.n_embd=33", "model.n_head=2"], "model.n_embd=33"),
        ("model:\n  n_embd: 98\n", [], "mine.yaml:2"),
        ("model:\n  bias: true\n  arch: gpt2", ["model.arch=modern"], "model.arch=modern"),
    ],
)
def test_values_that_do_not_fit_are_blamed_on_what_was_typed(
    text: str, overrides: list[str], place: str
) -> None:
    ((message, _),) = problems(text, *overrides)
    assert message.startswith(f"{place}: ")
