"""The fuzz targets: functions that must accept an input or raise GptcliError. Any other error is a
failure.

A target that needs files uses the same folder for every input. `accepts` returns whether the input
was accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from hypothesis import strategies as st

from gptcli.cli.prompts import read_prompts
from gptcli.cli.run_rows import run_rows
from gptcli.config import Config, ModelConfig
from gptcli.config_files import dump_config, find_config, parse_config
from gptcli.config_problems import dotted_keys
from gptcli.corpus import cache
from gptcli.corpus.encoding import encode_all
from gptcli.corpus.reading import text_pieces
from gptcli.corpus.records import jsonl_pieces
from gptcli.corpus.sources import find_source
from gptcli.corpus.token_store import ShardWriter, dtype_for
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from gptcli.model.user_parts import parts_of, refuse_other_parts
from gptcli.tokenization import build_tokenizer, load_tokenizer
from gptcli.tokenization.user_bpe import user_bpe_from_json
from gptcli.training import checkpoint, run_folder
from gptcli.training.consistency import same_config
from gptcli.training.journal import Journal, trim_samples
from gptcli.training.meta_file import dump_meta
from gptcli.training.run_summary import progress_summary
from gptcli.training.training_state import build_model, progress_of
from gptcli.view.runs_table import runs_lines
from gptcli.view.safe_text import clean
from tests.fuzz import inputs
from tests.fuzz.inputs import any_bytes, as_json, changed, edited, nested, yaml_like

# One input may take at most this wall time. Even on a busy machine, no input takes nearly as long.
SECONDS = 60.0
# In characters. An error can be long, because it has a line for each of the problems of a config.
LONGEST_ERROR = 100_000
TEXT = "KING:\nWhat light is this, that comes by night? é🙂\n" * 4
STEP = 12


class HangError(Exception):
    """An input took longer than SECONDS."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raise HangError if the `with` block takes longer than `seconds`.

    On systems without a timer, the time is not limited."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise HangError(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Target:
    """A fuzz target: its name, a strategy that makes inputs, and a function that takes an input."""

    name: str
    strategy: st.SearchStrategy[Any]
    feed: Callable[[Any], object]
    share: int = 1
    """In a long run, a target with share 3 gets three times as many inputs as a target with share
    1."""

    def accepts(self, value: Any) -> bool:
        """Return True if the target accepts the input, False if it raises a GptcliError.

        Raise HangError if the target takes longer than SECONDS, and ValueError if the message of
        the GptcliError is empty or very long. Any other error of the target passes through."""
        with no_longer_than(SECONDS):
            try:
                self.feed(value)
            except GptcliError as error:
                refusal = error.message
            else:
                return True
        if not 0 < len(refusal) < LONGEST_ERROR:
            raise ValueError(f"an error of {len(refusal):,} characters: {refusal[:100]}")
        return False


def targets(folder: Path) -> list[Target]:
    """All fuzz targets. They write only below `folder`."""
    run = _run(folder / "run")
    return [
        *_configs(),
        *_tokenizers(folder),
        *_checkpoints(run),
        *_texts(folder),
        *_run_files(run),
        _cache(folder),
        *_names(run),
    ]


def _configs() -> list[Target]:
    default = dump_config(Config()).encode()
    key = st.sampled_from(dotted_keys()) | yaml_like | st.text(max_size=10)
    value = yaml_like | st.text(max_size=20) | st.sampled_from(["[" * 60, "9" * 5000, "1e400"])
    sections = changed(Config().model_dump())
    text = st.one_of(
        yaml_like,
        st.text(max_size=60),
        edited(default).map(lambda data: data.decode("utf-8", "replace")),
        sections.map(lambda values: yaml.safe_dump(values, allow_unicode=True)),
        # At most 60 bytes: PyYAML takes a tenth of a second for an input with deeper nesting.
        # `interesting.py` has a few longer inputs.
        nested.map(lambda data: data[:60].decode()),
    )
    overrides = st.lists(st.tuples(key, value).map("=".join) | st.text(max_size=10), max_size=4)
    return [
        Target("config text", text, parse_config, 3),
        Target("overrides", overrides, lambda words: parse_config("", words), 3),
    ]


def _tokenizers(folder: Path) -> list[Target]:
    path = folder / "tokenizer.json"
    bases = [
        json.loads(build_tokenizer(kind, 262, lambda: iter([TEXT])).to_json())
        for kind in ("char", "bpe", "byte")
    ]

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        tokenizer = load_tokenizer(path)
        tokenizer.decode(range(tokenizer.vocab_size))
        tokenizer.decode(tokenizer.encode("What"))

    class Learner:
        """Takes the place of a learner's BPE class. Its `load` accepts every file."""

        merges: ClassVar[list[tuple[int, int]]] = []

        def load(self, path: str) -> None:
            Path(path).read_bytes()

    def feed_user_bpe(model: Any) -> None:
        if isinstance(model, dict):
            # The merges can have a wrong form.
            with suppress(ValueError, AttributeError, TypeError):
                lines = [line.split() for line in model.get("merges", [])]
                Learner.merges = [(int(left), int(right)) for left, right in lines]
            with suppress(ValueError):  # load_tokenizer turns this ValueError into a GptcliError
                user_bpe_from_json(model, Learner)

    user_parts = {"merges": ["97 98", "256 256", "257 257"], "saved": "", "kind": "own"}
    doubling = [f"{256 + i} {256 + i}" for i in range(80)]
    return [
        Target(
            "tokenizer.json",
            st.one_of(
                *(changed(base).map(as_json) for base in bases),
                *(edited(as_json(base)) for base in bases),
                inputs.json_values.map(as_json),
                any_bytes,
                nested,
            ),
            feed,
            2,
        ),
        Target(
            "tokenizer of a learner",
            changed(user_parts) | changed({**user_parts, "merges": ["97 98", *doubling]}),
            feed_user_bpe,
        ),
    ]


MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8)


def _run(run: Path) -> Path:
    """Make a run folder with one checkpoint of an untrained model. Return the folder."""
    config = Config(model=MODEL)
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    run_folder.create(run, config, tokenizer)
    model = build_model(MODEL, tokenizer.vocab_size)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    meta = {
        "progress": {"step": STEP, "tokens": 5, "seconds": 1.5, "best_step": STEP},
        "vocab_size": 257,
        "tokenizer": tokenizer.fingerprint(),
        "data": "0" * 64,
        "model": MODEL.model_dump(),
        "config": config.model_dump(),
        "own_attention": False,
        "own_parts": [],
    }
    checkpoint.save(run, STEP, weights, {"momentum/x": torch.zeros(3)}, meta)
    checkpoint.mark_best(run, STEP)
    return run


def _checkpoints(run: Path) -> list[Target]:
    folder = checkpoint.folder_of(run, STEP)
    model, meta_path, best = (
        folder / "model.safetensors", folder / "meta.json", run / "checkpoints" / "best"
    )  # fmt: skip
    right_meta, right_model = meta_path.read_bytes(), model.read_bytes()
    meta = json.loads(right_meta)
    config = run_folder.read_config(run)

    def feed_meta(data: bytes) -> None:
        meta_path.write_bytes(data)
        try:
            checkpoint.choose_step(run, "best")
            found = checkpoint.read_meta(run, STEP)
            refuse_other_parts(run, parts_of(found), None)
            same_config(run, found, config)
            progress_summary(progress_of(found), "done")
            checkpoint.best_valid(run)
        finally:
            meta_path.write_bytes(right_meta)

    def sealed(value: Any) -> bytes:
        if not isinstance(value, dict):
            return as_json(value)
        body = {key: inner for key, inner in value.items() if key not in ("step", "files")}
        return dump_meta(value.get("step", STEP), body, value.get("files", meta["files"]))

    def feed_tensors(data: bytes) -> None:
        model.write_bytes(data)
        file = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        body = {key: value for key, value in meta.items() if key not in ("step", "files")}
        vouched = {**meta["files"], "model.safetensors": file}
        meta_path.write_bytes(dump_meta(STEP, body, vouched))
        try:
            loaded = checkpoint.load(run, STEP)
            build_model(MODEL, 257, None, loaded.model)
        finally:
            meta_path.write_bytes(right_meta)
            model.write_bytes(right_model)

    def feed_best(data: bytes) -> None:
        best.write_bytes(data)
        checkpoint.find_best_step(run)
        checkpoint.best_valid(run)
        with suppress(UnicodeDecodeError):
            checkpoint.choose_step(run, data.decode("utf-8"))

    length = struct.unpack("<Q", right_model[:8])[0]
    header, numbers = json.loads(right_model[8 : 8 + length]), right_model[8 + length :]

    def joined(part: tuple[bytes, int | None]) -> bytes:
        text, claimed = part
        return struct.pack("<Q", len(text) if claimed is None else claimed) + text + numbers

    claims = st.none() | st.sampled_from([0, 1, 2**31, 2**60, 2**64 - 1])
    return [
        Target(
            "meta.json",
            st.one_of(
                changed(meta).map(sealed),
                changed(meta).map(as_json),
                edited(right_meta),
                inputs.json_values.map(as_json),
                nested,
            ),
            feed_meta,
            2,
        ),
        Target(
            "safetensors header",
            st.one_of(
                st.tuples(changed(header).map(as_json), claims).map(joined),
                st.tuples(edited(right_model[8 : 8 + length]), claims).map(joined),
                st.tuples(nested, st.none()).map(joined),
                any_bytes,
            ),
            feed_tensors,
            2,
        ),
        Target("checkpoints/best", edited(b"step-00000012\n") | any_bytes, feed_best),
    ]


def _texts(folder: Path) -> list[Target]:
    jsonl, text, source = folder / "a.jsonl", folder / "a.txt", folder / "learner.py"
    bytewise = build_tokenizer("byte", 0, lambda: iter(()))
    kinds = [bytewise] + [build_tokenizer(k, 262, lambda: iter([TEXT])) for k in ("char", "bpe")]

    def encoded(pieces: Any) -> None:
        encode_all(pieces, bytewise, lambda ids: None)

    def feed_jsonl(data: bytes) -> None:
        jsonl.write_bytes(data)
        encoded(jsonl_pieces(jsonl))

    def feed_text(data: bytes) -> None:
        text.write_bytes(data)
        encoded(text_pieces(text))

    def feed_prompt(given: tuple[bytes, bool]) -> None:
        data, lines = given
        text.write_bytes(data)
        for prompt in read_prompts(None, text, lines):
            clean(prompt)
            for tokenizer in kinds:
                with suppress(GptcliError):
                    ids = tokenizer.encode(prompt, allow_eot=lines)
                    tokenizer.decode(ids)
                    tokenizer.show(prompt)
                    stream = tokenizer.stream()
                    _ = "".join(map(stream.push, ids)) + stream.flush()

    def feed_source(data: bytes) -> None:
        source.write_bytes(data)
        find_file(str(source))

    line = st.one_of(
        changed({"text": "Once", "meta": {"a": [1]}}).map(as_json),
        edited(b'{"text": "Once upon a time \\ud83d\\ude42"}'),
        any_bytes,
        nested,
        st.just(b"1" * 5000),
    )
    code = edited(b"import torch\nclass CausalSelfAttention(torch.nn.Module):\n    x = f'{1}'\n")
    return [
        Target("jsonl", st.lists(line, max_size=4).map(b"\n".join), feed_jsonl, 2),
        Target("text", edited(TEXT.encode()) | any_bytes, feed_text),
        Target("prompts", st.tuples(edited(TEXT.encode()) | any_bytes, st.booleans()), feed_prompt),
        Target("a learner's source", code | any_bytes | nested, feed_source),
    ]


def _run_files(run: Path) -> list[Target]:
    status = {"run": "x", "steps": 12, "stopped": "done", "train_loss": 1.5, "own_parts": []}
    record = {"kind": "eval", "step": 3, "val_loss": 1.5, "tokens": 1, "seconds": 0.5}

    def feed_status(data: bytes) -> None:
        (run / "run.json").write_bytes(data)
        parts_of(run_folder.read_status(run))
        runs_lines(run_rows(run.parent))

    def feed_metrics(lines: list[bytes]) -> None:
        (run / "run.json").unlink(missing_ok=True)
        path = run / "metrics.jsonl"
        path.write_bytes(b"\n".join(lines))
        runs_lines(run_rows(run.parent))
        Journal(run, 5, 5, 5).close()

    def feed_samples(data: bytes) -> None:
        path = run / "samples.txt"
        path.write_bytes(data)
        trim_samples(path, 3)

    line = changed(record).map(as_json) | edited(as_json(record)) | any_bytes | nested
    headings = b"=== step 2 ===\nWhat\n=== step 4 ===\n=== step " + b"9" * 5000 + b" ===\n"
    return [
        Target("run.json", changed(status).map(as_json) | any_bytes | nested, feed_status),
        Target("metrics.jsonl", st.lists(line, max_size=4), feed_metrics),
        Target("samples.txt", edited(headings), feed_samples),
    ]


def _cache(folder: Path) -> Target:
    entry, key = folder / "entry", cache.entry_key("content", "byte")
    entry.mkdir()
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    writer = ShardWriter(entry, dtype_for(257), 100)
    writer.write(tokenizer.encode_array(TEXT))
    cache.write_meta(entry, key, tokenizer, writer.finish(), 1)
    assert cache.read_entry(entry, key) is not None
    path = entry / "meta.json"
    right = path.read_bytes()
    meta = json.loads(right)
    del meta["sha256"]

    def sealed(value: Any) -> bytes:
        if isinstance(value, dict):
            # Turn all keys into text, as JSON does, because keys of several types cannot be
            # sorted.
            value = json.loads(json.dumps(value))
            value["sha256"] = cache._meta_sha256(value)
        return as_json(value)

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        notes: list[str] = []
        if cache.read_entry(entry, key, None, notes) is None:
            assert notes, "damage is reported"

    return Target(
        "token cache", changed(meta).map(sealed) | edited(right) | any_bytes | nested, feed
    )


def _names(run: Path) -> list[Target]:
    def feed(name: str) -> None:
        looks: list[Callable[[str], object]] = [find_config, find_file, run_folder.find_run]
        # If the name is an existing folder such as /, find_source would read all its files.
        if not os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111
            looks.append(find_source)
        for look in looks:
            with suppress(GptcliError):
                look(name)
        checkpoint.choose_step(run, name)

    part = st.sampled_from(["..", "/", ".", "~", "a", ":", "\n", "é", "*", "a" * 300, "-", "12"])
    # Names that come from the operating system never hold a NUL, and are at most a few thousand
    # characters long.
    name = st.text(max_size=20).map(lambda text: text.replace("\0", ""))
    return [Target("names", st.lists(part, max_size=8).map("".join) | name, feed)]
