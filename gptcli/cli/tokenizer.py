"""`gptcli tokenizer train|shards|encode|decode|show`: trains tokenizers, converts text and ids."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.command_line import Command, Group, same_option
from gptcli.cli.output import note, print_json
from gptcli.cli.prompts import typed
from gptcli.cli.shadowed_names import note_tokenizer_and_run, note_two_runs
from gptcli.errors import GptcliError, cropped
from gptcli.files.paths import expanded
from gptcli.other_spellings import FORM_OF, normalised
from gptcli.plurals import counted
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.config import DataConfig
    from gptcli.tokenization import Tokenizer

app = typer.Typer(
    cls=Group,
    help="Train a tokenizer, write token shards, encode and decode text, show tokens.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="NAME|FILE|RUN",
        help="The tokenizer: gpt2, byte, a tokenizer.json, or a run.",
    ),
]
EscapeOption = Annotated[
    bool,
    typer.Option(
        "--escape",
        "-e",
        help="Read \\n, \\t, \\r and \\\\ in TEXT as a newline, a tab, a return and a backslash.",
    ),
]
TextArgument = Annotated[
    str | None, typer.Argument(metavar="[TEXT]", help="Default: standard input.")
]
TextWords = Annotated[
    list[str],
    typer.Argument(
        metavar="TEXT ... [data.KEY=VALUE ...]",
        help="Texts: files, folders, .jsonl, or a shipped text. Then keys that say how to read "
        "them: data.encoding, data.field, data.documents, data.skip_undecodable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@app.command(
    cls=Command, epilog="Example: gptcli tokenizer train my.txt --vocab-size 512 --out my.json"
)
def train(
    words: TextWords,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The tokenizer.json to write.")
    ],
    kind: Annotated[str, typer.Option("--kind", metavar="bpe|char", help="bpe or char.")] = "bpe",
    vocab_size: Annotated[
        int,
        typer.Option(
            "--vocab-size",
            metavar="N",
            min=257,
            max=1_000_000,
            help="Number of tokens, for bpe only.",
        ),
    ] = 1024,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Train a tokenizer on texts."""
    if kind not in ("bpe", "char"):
        raise GptcliError(
            f"--kind `{kind}` is not one of bpe, char", "byte and gpt2 need no training"
        )
    out = expanded(out)
    if out.is_dir():
        raise GptcliError(f"{out} is a folder", "name a file, for example --out pieces.json")
    if out.exists() and not overwrite:
        raise GptcliError(f"{out} exists already", "add --overwrite to replace it")
    data = _data_of(words)
    from gptcli.corpus import open_corpus
    from gptcli.files.durable import write_atomically

    with waiting("reading the text and training the tokenizer"):
        corpus = open_corpus(data, kind=kind, vocab_size=vocab_size, val_fraction=0.0, block_size=1)
    for line in corpus.notes:
        note(line)
    try:
        write_atomically(out, corpus.tokenizer.to_json().encode("utf-8"))
    except OSError as error:
        raise GptcliError(
            f"{out}: cannot be written ({error.strerror})", "name another file with --out"
        ) from None
    tokens = len(corpus.train)
    note(
        f"{out}: {counted(corpus.tokenizer.vocab_size, 'token')}; the text has "
        f"{counted(tokens, 'token')} of {corpus.source_bytes / tokens:.2f} bytes on average"
    )


_KEYS = ("data.encoding", "data.field", "data.documents", "data.skip_undecodable")
"""The config keys that these commands accept: they say how to read the texts."""


def _data_of(words: list[str], command: str = "train") -> DataConfig:
    """The config section `data` from `words`, which are the names of texts and data.KEY=VALUE.

    Raises GptcliError if there is no text, or if a key is set that is not in _KEYS."""
    from gptcli.config_files import is_override, parse_config, values_set
    from gptcli.corpus.sources import section_of

    overrides = [word for word in words if is_override(word) and not os.path.exists(word)]  # noqa: PTH110
    texts = [word for word in words if word not in overrides]
    for override in overrides:
        if not set(values_set([override])) <= set(_KEYS):
            option, _, value = override.partition("=")
            forms = FORM_OF.get(f"tokenizer {command}", {})
            form = forms.get(normalised(option), f"--{same_option(option)}")
            is_option = same_option(option) in ("vocab-size", "kind", "out") or "VALUE" in form
            raise GptcliError(
                f"`{cropped(override)}`: `gptcli tokenizer {command}` has no such setting",
                f"write {form.partition(' ')[0]} {shlex.quote(value)}"
                if is_option
                else f"these can be set: {', '.join(_KEYS)}",
            )
    if not texts:
        raise GptcliError("no text is named", "name a file, a folder or a shipped text")
    section = parse_config("{}", overrides, name="command line").data
    sources = [section_of(text).source for text in texts]
    return section.model_copy(update={"source": sources if len(sources) > 1 else sources[0]})


@app.command(
    cls=Command,
    epilog="Example: gptcli tokenizer shards texts/ --tokenizer gpt2 --out s3://mine/tokens",
)
def shards(
    words: TextWords,
    out: Annotated[
        str,
        typer.Option("--out", metavar="FOLDER|URL", help="A new folder, or a URL such as s3://..."),
    ],
    tokenizer: TokenizerOption = "gpt2",
) -> None:
    """Encode texts into token shards, to train on them."""
    from gptcli.corpus import open_corpus
    from gptcli.corpus.shard_writing import write_shards_to

    data = _data_of(words, "shards")
    loaded = _load(tokenizer)
    with waiting("encoding the text"):
        corpus = open_corpus(
            data,
            kind=loaded.kind,
            vocab_size=loaded.vocab_size,
            val_fraction=0.0,
            block_size=1,
            tokenizer=loaded,
        )
        for line in corpus.notes:
            note(line)
        place = write_shards_to(out, corpus.train.chunks(), loaded, corpus.documents)
    note(f"{place}: {counted(len(corpus.train), 'token')}; train on them: data.source={place}")


@app.command(cls=Command, epilog='Example: gptcli tokenizer encode "Hello world" --tokenizer gpt2')
def encode(
    text: TextArgument = None,
    tokenizer: TokenizerOption = "gpt2",
    allow_eot: Annotated[
        bool,
        typer.Option(
            "--allow-eot", help="Encode <|endoftext|> as the special token, instead of as text."
        ),
    ] = False,
    escape: EscapeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print the token ids of a text."""
    ids = _load(tokenizer).encode(_text(text, escape), allow_eot=allow_eot)
    if as_json:
        print_json({"ids": ids})
    else:
        sys.stdout.write(" ".join(map(str, ids)) + "\n")


@app.command(cls=Command, epilog="Example: gptcli tokenizer decode 15496 995 --tokenizer gpt2")
def decode(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID ...]", help="Default: standard input.")
    ] = None,
    tokenizer: TokenizerOption = "gpt2",
    as_json: JsonOption = False,
) -> None:
    """Print the text of token ids."""
    words = ids if ids else _standard_input("ids").replace(",", " ").split()
    loaded = _load(tokenizer)
    numbers = []
    for word in words:
        # Python refuses to convert numbers with thousands of digits.
        if not word.isdecimal() or len(word) > 18 or int(word) >= loaded.vocab_size:
            short = word if len(word) <= 40 else f"{word[:37]}..."
            raise GptcliError(
                f"`{short}` is not a token id of this tokenizer",
                f"ids are whole numbers from 0 to {loaded.vocab_size - 1}",
            )
        numbers.append(int(word))
    text = loaded.decode(numbers)
    if as_json:
        print_json({"text": text})
    else:
        sys.stdout.write(text + "\n")


@app.command(cls=Command, epilog='Example: gptcli tokenizer show "Hello world" --tokenizer gpt2')
def show(
    text: TextArgument = None,
    tokenizer: TokenizerOption = "gpt2",
    escape: EscapeOption = False,
    vocabulary: Annotated[
        bool,
        typer.Option(
            "--vocabulary", help="Show every token of the tokenizer. TEXT must be left out."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens of a text, and how well they compress it.

    On a terminal, each token is a tile above its id. In a pipe, each token is a line with its id
    and its text. A table on stderr compares the bytes per token with those of GPT-2's tokenizer."""
    if vocabulary:
        if text is not None:
            raise GptcliError("--vocabulary takes no TEXT", "leave out one of them")
        _show_vocabulary(_load(tokenizer), as_json)
        return
    loaded, text = _load(tokenizer), _text(text, escape)
    tokens = loaded.show(text)
    _print_tokens(tokens, as_json, in_columns=False)
    if not as_json:
        from gptcli.tokenization.gpt2 import gpt2_tokenizer
        from gptcli.view.token_pieces import Compression, compression_lines

        found = [Compression(tokenizer, loaded.vocab_size, len(tokens))]
        if loaded.kind != "gpt2":
            beside = gpt2_tokenizer()
            found.append(Compression("gpt2", beside.vocab_size, len(beside.encode(text))))
        for line in ["", *compression_lines(found, len(text.encode("utf-8")))]:
            note(line)


def _show_vocabulary(tokenizer: Tokenizer, as_json: bool) -> None:
    """Print every token, then a line that says how many tokens of each kind there are."""
    from gptcli.tokenization.tokenizer import visible
    from gptcli.view.token_pieces import vocabulary_line

    pieces = list(tokenizer.pieces)
    _print_tokens([(id, visible(p)) for id, p in enumerate(pieces)], as_json, in_columns=True)
    if not as_json:
        note("\n" + vocabulary_line(tokenizer.kind, pieces, tokenizer.special_ids))


def _print_tokens(tokens: list[tuple[int, str]], as_json: bool, *, in_columns: bool) -> None:
    """Print tokens as JSON, as tiles or columns on a terminal, or as lines into a file or pipe."""
    if as_json:
        for token, piece in tokens:
            print_json({"id": token, "text": piece})
    elif sys.stdout.isatty():
        from gptcli.cli.output import stdout_console
        from gptcli.view.token_pieces import token_tiles, vocabulary_columns

        console = stdout_console()
        shown = vocabulary_columns if in_columns else token_tiles
        for line in shown(tokens, console.width, console.encoding):
            console.print(line)
    else:
        for token, piece in tokens:
            sys.stdout.write(f'{token:>7}  "{piece}"\n')


def _text(text: str | None, escape: bool) -> str:
    return _standard_input("text") if text is None else typed(text, "TEXT", escape=escape)


def _standard_input(what: str) -> str:
    """The text from standard input, without its byte-order mark.

    `what` is the word for the content in error messages: "ids" or "text". Raises GptcliError if
    standard input is closed or not UTF-8."""
    if sys.stdin is None:  # closed by the shell: `gptcli tokenizer encode <&-`
        raise GptcliError(
            f"there is no {what}: standard input is closed",
            f"give the {what} on the command line, or through a pipe",
        )
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"standard input is not UTF-8 text (byte {error.start})", "convert it to UTF-8"
        ) from None


def _load(name: str) -> Tokenizer:
    from gptcli.tokenization import build_tokenizer

    note_tokenizer_and_run(name)
    if name in ("gpt2", "byte"):
        return build_tokenizer(name, 0, lambda: iter(()))
    from gptcli.training.named_tokenizer import load_named

    note_two_runs(name)
    return load_named(name, "--tokenizer").tokenizer
