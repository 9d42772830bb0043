"""If a user writes another program's option or key, the error says what gptcli calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from gptcli.cli import app_of
from gptcli.config import LoraConfig
from gptcli.config_problems import dotted_keys
from gptcli.other_spellings import COMMAND_OF, FIXED, FORM_OF, KEY_OF, SENTENCE_OF, VALUES

ROOT: Any = typer.main.get_command(app_of([]))
COMMANDS = {
    **ROOT.commands,
    **{f"tokenizer {name}": each for name, each in ROOT.commands["tokenizer"].commands.items()},
    "": ROOT,
}


def hints(outcome: Any) -> list[str]:
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    errors, _, found = outcome.err.partition("\n\n")
    assert all(line.startswith("error: ") for line in errors.splitlines())
    return [line.removeprefix("hint: ") for line in found.splitlines()]


TRAIN = [
    ("--lr 0.001", "write train.learning_rate=0.001"),
    ("--learning_rate=1e-3", "write train.learning_rate=1e-3"),
    ("--max_iters=5000", "write train.max_steps=5000"),
    ("--steps 5", "write train.max_steps=5"),
    ("-n 5", "write train.max_steps=5"),
    ("--batch-size 8", "write train.batch_size=8"),
    ("--micro_batch_size=8", "write train.batch_size=8"),
    ("--block_size=64", "write model.block_size=64"),
    ("--n_layer=6", "write model.n_layer=6"),
    ("--model.n_layer 6", "write model.n_layer=6"),
    ("--eval_interval=10", "write train.eval_every=10"),
    ("--compile=False", "write run.compile=false"),
    ("--device=cpu", "write run.device=cpu"),
    ("--dtype bf16", "write run.dtype=bfloat16"),
    ("--bf16", "write run.dtype=bfloat16"),
    ("--seed 3", "write train.seed=3"),
    ("--out_dir x", "write --out x"),
    ("--output-dir=x", "write --out x"),
    ("-o x", "write --out x"),
    ("-out x", "write --out, with two dashes"),
    ("--name mine", "write --out runs/mine"),
    ("--init_from=resume", "write --resume"),
    ("--init_from=gpt2-xl", "gptcli has no trained weights; --from RUN starts from your own run"),
    ("--init_from=scratch", "leave it out: a new run starts from new weights"),
    ("--resume_from_checkpoint", "write --resume"),
    ("--checkpoint_dir runs/x", "write --from runs/x"),
    ("-c mine.yaml", "write the value without an option: gptcli train mine.yaml"),
    ("--dataset=no_text", "name a text file or a folder, without an option: gptcli train TEXT"),
    ("--resume=true", "write --resume alone, or leave it out"),
    ("-p hello", "-p is an option of `gptcli sample`"),
    ("--prompt hello", "--prompt is an option of `gptcli sample`"),
    ("--ouut x", "did you mean --out? See gptcli train --help"),
    ("--out", "write --out DIR; see gptcli train --help"),
]  # fmt: skip
SAMPLE = [
    ("--start=hello", "write --prompt hello"),
    ("--start=FILE:x.txt", "write --prompt-file x.txt"),
    ("--n-predict 5", "write --max-new-tokens 5"),
    ("--max_tokens=5", "write --max-new-tokens 5"),
    ("--max_length 5", "write --max-new-tokens 5"),
    ("--num_return_sequences=2", "write --num-samples 2"),
    ("--temp 0.5", "write --temperature 0.5"),
    ("--topk 5", "write --top-k 5"),
    ("--repeat_penalty 1.1", "write --repetition-penalty 1.1"),
    ("-m runs/x", "write the value without an option: gptcli sample runs/x"),
    ("--out_dir=out", "write the value without an option: gptcli sample out"),
    ("--init_from=resume", "leave it out, or name the run: gptcli sample RUN"),
    ("--step 200", "write --checkpoint 200"),
    ("--cpu", "write --device cpu"),
    ("-prompt x", "write --prompt, with two dashes"),
    ("--PROMPT x", "write --prompt, in lower case"),
    ("-Prompt x", "write --prompt, in lower case and with two dashes"),
    ("--N 3", "write -n, in lower case and with one dash"),
    ("--n 3", "write -n, with one dash"),
    ("-P x", "write -p, in lower case"),
    ("mine PROMPT=x", "write --prompt x"),
    ("--block_size 64", "this setting is a key of `gptcli train`: model.block_size=64"),
    ("--prompt", "write --prompt TEXT; see gptcli sample --help"),
]


@pytest.mark.parametrize(("words", "hint"), TRAIN)
def test_train(words: str, hint: str, cli: Any) -> None:
    assert hints(cli("train", "tiny", *words.split())) == [hint]


@pytest.mark.parametrize(("words", "hint"), SAMPLE)
def test_sample(words: str, hint: str, cli: Any) -> None:
    assert hints(cli("sample", *words.split())) == [hint]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train tiny --epochs 3", "gptcli counts steps, not epochs"),
        ("train tiny train.epochs=3", "gptcli counts steps, not epochs"),
        ("train tiny --wandb_log=True", "metrics.jsonl in the run folder always holds"),
        ("train tiny --report_to wandb", "write run.loggers=wandb"),
        ("eval --block_size 32", "write --context 32"),
        ("bench --n_layer 3", "write model.n_layer=3"),
        ("tokenizer train my.txt --vocab_siz 300", "did you mean --vocab-size?"),
        ("score --text no-file", "write the text to a file, and name the file: gptcli score FILE"),
        (
            "tokenizer train --input data",
            "write the value without an option: gptcli tokenizer train data",
        ),
        ("SAMPLE mine", "did you mean `gptcli sample`?"),
        ("tokenizer TRAIN", "did you mean `gptcli tokenizer train`?"),
        ("sample mine hello", "to continue a text: gptcli sample --prompt 'mine hello'"),
        ("sample mine temperature=0.5", "write --temperature 0.5"),
        ("schema x", "see gptcli schema --help"),
        ("generate", "write `gptcli sample`"),
        ("finetune", "write `gptcli train`"),
        ("resume", "write `gptcli train --resume`"),
        ("trian", "did you mean `gptcli train`?"),
        ("tokenizer encod", "did you mean `gptcli tokenizer encode`?"),
        ("--prompt x", "--prompt is an option of `gptcli sample`"),
        ("-V", "write --version"),
        ("shakespeare", "to train on it: gptcli train shakespeare"),
        ("frobnicate", "the commands are: train, sample, eval"),
    ],
)
def test_other_commands(words: str, hint: str, cli: Any) -> None:
    (found,) = hints(cli(*words.split()))
    assert found.startswith(hint)


def test_all_wrong_options_are_reported_at_once(cli: Any) -> None:
    outcome = cli("train", "tiny", "--lr", "0.1", "--batch_size=4", "--resume")
    assert outcome.err.startswith(
        "error: no such option: --lr\nerror: no such option: --batch_size"
    )
    assert hints(outcome) == [
        "--lr: write train.learning_rate=0.1",
        "--batch_size: write train.batch_size=4",
    ]


def test_an_option_is_no_value_of_another_option(cli: Any) -> None:
    assert hints(cli("sample", "--prompt", "--json"))[0].startswith(
        "write --prompt TEXT; if `--json` is its value, write --prompt=--json"
    )
    # `--lr` is no option of `sample`, so it is accepted as the prompt.
    assert "--lr" not in cli("sample", "no-such-run", "--prompt", "--lr").err


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("train.lr=3", "did you mean `train.learning_rate`?"),
        ("lr=3", "did you mean `train.learning_rate`?"),
        ("model.hidden_size=64", "did you mean `model.n_embd`?"),
        ("model.num_layers=64", "did you mean `model.n_layer`?"),
        ("train.gradient_accumulation_steps=2", "did you mean `train.grad_accum`?"),
        ("n_layer=2", "did you mean `model.n_layer`?"),
    ],
)
def test_keys(text: str, hint: str, cli: Any) -> None:
    assert hints(cli("train", "tiny", text)) == [hint]


def test_underscores_and_short_options_work(cli: Any, trained: Path) -> None:
    spellings = (
        ("--max-new-tokens", "5", "--prompt", "KING", "--temperature", "0"),
        ("--max_new_tokens=5", "--prompt=KING", "--temperature=0"),
        ("-n", "5", "-p", "KING", "-t", "0"),
        ("-n5", "-pKING", "-t0"),
    )
    outputs = {cli("sample", trained, *words, "--threads", "1").out for words in spellings}
    assert len(outputs) == 1
    assert outputs.pop().startswith("KING")


def test_help_and_chat(cli: Any) -> None:
    assert cli("help").out == cli("--help").out
    assert cli("help", "sample").out == cli("sample", "--help").out == cli("chat", "--help").out
    assert "gptcli chat" in cli("sample", "--help").out
    outcome = cli("chat", "--json")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --interactive generates one text")


def test_a_row_of_the_table_names_what_exists() -> None:
    """Each suggestion in the tables of gptcli/other_spellings.py is a command, an option, an
    argument or a key of gptcli. The tables have no row for a name that gptcli itself uses."""
    inside = {f"train.lora.{name}" for name in LoraConfig.model_fields}
    assert set(KEY_OF.values()) <= {*dotted_keys(), *inside}
    assert {key for key, _ in FIXED.values()} | VALUES.keys() <= set(dotted_keys())
    for command, forms in FORM_OF.items():
        own = {name for p in COMMANDS[command].params for name in (*p.opts, *p.secondary_opts)}
        for name, form in forms.items():
            option = form.split()[0]
            assert option in own or option.isupper(), (command, form)
            dashes = "-" if len(name) == 1 else "--"
            assert f"{dashes}{name.replace('_', '-')}" not in own, (command, name)
    for form in COMMAND_OF.values():
        assert form.split()[0] in (*COMMANDS, "--version")
    assert not SENTENCE_OF.keys() & {key.partition(".")[2] for key in dotted_keys()}
    assert not KEY_OF.keys() & {key.partition(".")[2] for key in dotted_keys()}
