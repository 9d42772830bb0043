"""Functions that make malicious run folders. hostile_attempts.py runs gptcli on each of these
folders."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = Callable[[Path, Path], None]
"""A function that makes a run folder malicious. The run has one checkpoint. The second argument is
a folder outside of the run folder."""

CASES: dict[str, tuple[Case, str]] = {}
FILES_OF_LINES: dict[str, tuple[Case, str, frozenset[str]]] = {}
"""The cases that change metrics.jsonl, samples.txt or .lock: name -> (function, words that the
error must contain, commands that open the file and must fail). `gptcli runs` never fails. If it
opens the file, it lists the run as damaged. The commands that do not open the file work as
usual."""
STEP = "checkpoints/step-00000012"


def case(words: str) -> Callable[[Case], Case]:
    """Register the decorated function in CASES.

    `words` holds alternatives, separated by `|`. The error of gptcli must contain one of them."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, words)
        return function

    return register


def change_meta(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the content of meta.json with `change`, and update the hash in meta.json."""
    from gptcli.training.meta_file import dump_meta

    path = run / STEP / "meta.json"
    meta = json.loads(path.read_bytes())
    change(meta)
    path.write_bytes(dump_meta(12, meta, meta["files"]))


def put_tensors(run: Path, data: bytes) -> None:
    """Write `data` to model.safetensors, and the size and hash of this file to meta.json."""
    (run / STEP / "model.safetensors").write_bytes(data)

    def update(meta: dict[str, Any]) -> None:
        digest = hashlib.sha256(data).hexdigest()
        meta["files"]["model.safetensors"] = {"size": len(data), "sha256": digest}

    change_meta(run, update)


def tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], end: Any = 4, dtype: str = "F32") -> dict[str, Any]:
    return {"wte.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@case("a header of 1,152,921,504,606,846,976 bytes in a file of 12")
def header_of_2_to_the_60(run: Path, outside: Path) -> None:
    put_tensors(run, struct.pack("<Q", 2**60) + b"{}  ")


@case("a header of 1,000 bytes in a file of 10")
def header_beyond_the_file(run: Path, outside: Path) -> None:
    put_tensors(run, struct.pack("<Q", 1000) + b"{}")


@case("is not a safetensors file")
def empty_file(run: Path, outside: Path) -> None:
    put_tensors(run, b"")


@case("an impossible shape or position")
def absurd_shape(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(entry([2**40, 2**20]), b"1234"))


@case("an impossible shape or position")
def shape_that_overflows(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(entry([2**62, 4]), b"1234"))


@case("an impossible shape or position")
def empty_shape_of_absurd_size(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(entry([0, 2**62], end=0)))


@case("an impossible shape or position")
def place_beyond_the_file(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(entry([2**40], end=2**42), b"1234"))


@case("its header describes")
def tensors_that_overlap(run: Path, outside: Path) -> None:
    put_tensors(run, tensors({f"t{i}": entry([1])["wte.weight"] for i in range(9)}, b"1234"))


@case("its header is not JSON")
def header_nested_deeply(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(b'{"a":' * 100_000))


@case("its header is not an object")
def header_that_is_a_list(run: Path, outside: Path) -> None:
    put_tensors(run, tensors([1]))


@case("the checkpoint's weights do not fit the config")
def weights_of_no_model(run: Path, outside: Path) -> None:
    put_tensors(run, tensors(entry([1]), b"1234"))


@case("than this machine's memory")
def meta_that_claims_2_to_the_60_bytes(run: Path, outside: Path) -> None:
    change_meta(run, lambda m: m["files"]["model.safetensors"].update(size=2**60))


@case("than this machine's memory")
def a_terabyte_of_nothing(run: Path, outside: Path) -> None:
    os.truncate(run / STEP / "model.safetensors", 2**40)
    change_meta(run, lambda m: m["files"]["model.safetensors"].update(size=2**40))


@case("`files.model.safetensors` has an invalid value")
def meta_with_a_size_below_zero(run: Path, outside: Path) -> None:
    change_meta(run, lambda m: m["files"]["model.safetensors"].update(size=-1))


@case("meta.json cannot be read (1,099,511,627,776 bytes; the limit is 1,048,576)")
def meta_of_a_terabyte(run: Path, outside: Path) -> None:
    os.truncate(run / STEP / "meta.json", 2**40)


@case("meta.json is damaged: it is not valid JSON")
def meta_nested_deeply(run: Path, outside: Path) -> None:
    (run / STEP / "meta.json").write_bytes(b'{"a":' * 100_000)


@case("is not the config of this checkpoint|meta.json is damaged")
def meta_nested_as_deeply_as_json_goes(run: Path, outside: Path) -> None:
    path = run / STEP / "meta.json"
    meta = json.loads(path.read_bytes())
    del meta["sha256"]
    text = json.dumps({**meta, "format": 1, "config": 0})
    path.write_text(text.replace('"config": 0', '"config": ' + '{"a":' * 900 + "0" + "}" * 900))


@case("meta.json cannot be read (Not a regular file)")
def meta_that_is_a_pipe(run: Path, outside: Path) -> None:
    path = run / STEP / "meta.json"
    path.unlink()
    os.mkfifo(path)


def network(run: Path, **changes: Any) -> None:
    """Change keys of `model` in config.yaml, and copy the changed config into meta.json."""
    from gptcli.config_files import dump_config, parse_config

    path = run / "config.yaml"
    overrides = [f"model.{key}={value}" for key, value in changes.items()]
    config = parse_config(path.read_text("utf-8"), overrides)
    path.write_text(dump_config(config), encoding="utf-8")
    values = config.model_dump()
    change_meta(run, lambda meta: meta.update(model=values["model"], config=values))


@case("the checkpoint's weights do not fit the config")
def the_largest_network_of_the_schema(run: Path, outside: Path) -> None:
    network(run, n_layer=1000, n_embd=1_000_000, n_head=2)


@case("but config.yaml says n_layer 1,000")
def a_thousand_layers(run: Path, outside: Path) -> None:
    network(run, n_layer=1000)


@case("the checkpoint's weights do not fit the config|is too short")
def a_context_of_ten_million(run: Path, outside: Path) -> None:
    network(run, arch="gpt2", block_size=10_000_000)


@case("nats per token|is too short")
def a_ring_of_ten_million(run: Path, outside: Path) -> None:
    """Keep the run valid: the weights of `arch: modern` do not depend on the context length."""
    network(run, block_size=10_000_000)


@case("`model.n_layer` must be a whole number of at least 1 and at most 1,000")
def a_billion_layers(run: Path, outside: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text("utf-8").replace("n_layer: 1\n", "n_layer: 1000000000\n"))


def config_text(words: str, text: str) -> None:
    def write(run: Path, outside: Path) -> None:
        (run / "config.yaml").write_text(text, encoding="utf-8")

    name = f"config_{len(CASES)}_{''.join(c if c.isalnum() else '_' for c in text[:24])}"
    CASES[name] = (write, words)


_LAUGHS = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40)
]
config_text("more values or deeper nesting", "\n".join(_LAUGHS))
config_text("more values or deeper nesting", "a: " + "[" * 100_000)
config_text("more values or deeper nesting", "- " * 50_000)
config_text("a key must be a plain word", "? [&a [x, x], &b [*a, *a], &c [*b, *b]]\n: 1")
config_text("YAML tag", "data: !!python/object/apply:os.system ['touch /tmp/gptcli-was-here']")
config_text("YAML tag", "!!python/name:os.system data: 1")
config_text("YAML tag", "data: {source: !!python/name:os.system }")
config_text("YAML tag", "data: !!binary aGVsbG8=")
config_text("cannot be read (", "# " + "x" * 1_100_000)


@case("config.yaml: cannot be read (")
def config_of_a_terabyte(run: Path, outside: Path) -> None:
    os.truncate(run / "config.yaml", 2**40)


@case("tokenizer.json: the tokenizer cannot be read (1,099,511,627,776 bytes")
def tokenizer_of_a_terabyte(run: Path, outside: Path) -> None:
    os.truncate(run / "tokenizer.json", 2**40)


@case("tokenizer.json: the tokenizer cannot be read (Not a regular file)")
def tokenizer_that_is_a_pipe(run: Path, outside: Path) -> None:
    (run / "tokenizer.json").unlink()
    os.mkfifo(run / "tokenizer.json")


def tokenizer_model(words: str, name: str, model: dict[str, Any]) -> None:
    def write(run: Path, outside: Path) -> None:
        (run / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")

    CASES[name] = (write, words)


def _bpe(merged: list[str]) -> dict[str, Any]:
    from gptcli.tokenization.byte_level import to_characters

    tokens = [to_characters(bytes([value])) for value in range(256)]
    names = [*tokens, *merged, "<|endoftext|>"]
    return {"kind": "bpe", "vocab": {token: id for id, token in enumerate(names)}}


tokenizer_model(
    "has the id 1000000000", "an_id_of_a_billion", {"kind": "char", "vocab": {"a": 10**9}}
)
tokenizer_model("have the same id 0", "two_of_one_id", {"kind": "char", "vocab": {"a": 0, "b": 0}})
tokenizer_model(
    "tokens of up to 1,048,576 bytes|the vocabulary lacks",
    "a_token_of_a_megabyte",
    _bpe(["a" * 2**20]),
)
tokenizer_model(
    "tokens of up to 1,001 bytes, or too many|the vocabulary lacks",
    "many_long_tokens",
    _bpe([f"{'a' * 1000}{chr(number)}" for number in range(0x100, 0x143)] * 1
         + [f"{i:0900}" for i in range(100)]),
)  # fmt: skip


@case("tokenizer.json is not the tokenizer of this checkpoint|its tokens are too long")
def tokenizer_of_as_much_work_as_may_be(run: Path, outside: Path) -> None:
    """Write a tokenizer that takes much work to read.

    Its tokens are long, and each is correctly merged from two earlier tokens."""
    from gptcli.tokenization.bpe import BpeTokenizer

    merged = [b"a" * 2**k for k in range(1, 10)]
    merged += [b"a" * 512 + bytes([value]) for value in range(15) if value != 97]
    (run / "tokenizer.json").write_text(BpeTokenizer(merged).to_json(), encoding="utf-8")


@case("tokenizer.json: JSON with too many values")
def tokenizer_of_millions_of_lists(run: Path, outside: Path) -> None:
    (run / "tokenizer.json").write_bytes(b"[" + b"[]," * 5_000_000 + b"[]]")


@case("tokenizer.json: JSON with too many values")
def tokenizer_of_millions_of_words(run: Path, outside: Path) -> None:
    (run / "tokenizer.json").write_bytes(b'["ab"' + b',"ab"' * 3_200_000 + b"]")


@case("tokenizer.json: JSON with too many values")
def tokenizer_of_millions_of_numbers(run: Path, outside: Path) -> None:
    (run / "tokenizer.json").write_bytes(b"[1.5" + b",1.5" * 4_000_000 + b"]")


@case("tokenizer.json: not a tokenizer of gptcli")
def tokenizer_of_as_many_parts_as_may_be(run: Path, outside: Path) -> None:
    entries = ",".join(f'"{number}":{number}.5' for number in range(690_000))
    (run / "tokenizer.json").write_text("{" + entries + "}", encoding="utf-8")


@case("tokenizer.json: JSON that cannot be read")
def tokenizer_nested_deeply(run: Path, outside: Path) -> None:
    (run / "tokenizer.json").write_bytes(b'{"model":' * 100_000)


def _moved_out(path: Path, outside: Path) -> None:
    """Move a file out of the run folder, and put a link to it in its place.

    The rest of the run stays valid."""
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def link(words: str, name: str) -> None:
    def write(run: Path, outside: Path) -> None:
        _moved_out(run / name, outside)

    CASES[f"link_{Path(name).name}"] = (write, words)


link("model.safetensors cannot be read (A link to ", f"{STEP}/model.safetensors")
link("meta.json cannot be read (A link to ", f"{STEP}/meta.json")
link("state.safetensors cannot be read (A link to ", f"{STEP}/state.safetensors")
link("tokenizer.json: the tokenizer cannot be read (A link to ", "tokenizer.json")
link("config.yaml: cannot be read (A link to ", "config.yaml")


@case("meta.json cannot be read (Too many levels")
def a_link_to_itself(run: Path, outside: Path) -> None:
    path = run / STEP / "meta.json"
    path.unlink()
    path.symlink_to(path)


@case("every checkpoint is damaged")
def best_that_climbs(run: Path, outside: Path) -> None:
    (run / "checkpoints" / "best").write_text("../../../step-00000012\n", encoding="utf-8")
    os.truncate(run / STEP / "state.safetensors", 3)
    (run / STEP / "model.safetensors").unlink()
    change_meta(run, lambda meta: meta["progress"].update(best_step=12))


def of_lines(name: str, who: str, kind: str, words: str) -> Callable[[Case], None]:
    """Register the decorated function in FILES_OF_LINES.

    It changes the file `name`, which only the commands in `who` open. The error must say that this
    file cannot be opened, with the reason `words`."""

    def register(function: Case) -> None:
        FILES_OF_LINES[f"{name.strip('.').partition('.')[0]}_{kind}"] = (
            function,
            f"{name} cannot be opened ({words}",
            frozenset(who.split()),
        )

    return register


def file_of_lines(name: str, who: str, old: bytes) -> None:
    def put(run: Path, make: Callable[[Path], None]) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)

    @of_lines(name, who, "that_leads_out", "A link to ")
    def leads_out(run: Path, outside: Path) -> None:
        (outside / "bashrc").write_bytes(old)
        put(run, lambda path: path.symlink_to(outside / "bashrc"))

    @of_lines(name, who, "that_makes_a_file_outside", "A link to ")
    def makes_one(run: Path, outside: Path) -> None:
        put(run, lambda path: path.symlink_to(outside / "bashrc"))

    @of_lines(name, who, "that_is_a_pipe", "Not a regular file")
    def pipe(run: Path, outside: Path) -> None:
        put(run, os.mkfifo)

    # Any reason is correct here: commands that write refuse the link, and commands that read refuse
    # the pipe.
    @of_lines(name, who, "that_links_to_a_pipe", "")
    def linked_pipe(run: Path, outside: Path) -> None:
        os.mkfifo(run / "pipe")
        put(run, lambda path: path.symlink_to("pipe"))

    @of_lines(name, who, "that_is_a_folder", "Is a directory")
    def directory(run: Path, outside: Path) -> None:
        put(run, Path.mkdir)


def huge(name: str, who: str) -> None:
    @of_lines(name, who, "of_a_terabyte", "1,099,511,627,776 bytes; the limit is 1,073,741,824")
    def terabyte(run: Path, outside: Path) -> None:
        (run / name).touch()
        os.truncate(run / name, 2**40)


file_of_lines("metrics.jsonl", "resume runs inspect-batch", b'{"kind": "step", "step": 1}\n')
file_of_lines("samples.txt", "resume", b"alias ll=ls\n")
file_of_lines(".lock", "resume runs", b"")
huge("metrics.jsonl", "resume runs inspect-batch")
huge("samples.txt", "resume")


@of_lines("samples.txt", "resume", "that_is_the_config", "A link")
def samples_that_are_the_config(run: Path, outside: Path) -> None:
    (run / "samples.txt").unlink(missing_ok=True)
    (run / "samples.txt").symlink_to("config.yaml")
