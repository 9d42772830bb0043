"""Keeps a copy of standard input's text in the run folder: text.txt, text.jsonl and so on."""

from __future__ import annotations

import shutil
from pathlib import Path

from gptcli.config import Config
from gptcli.corpus.standard_input import STDIN, standard_input
from gptcli.files.names import shown
from gptcli.training.text_of_run import texts_exist


def with_kept_texts(run: Path, config: Config) -> tuple[Config, Path | None]:
    """The config with a file in place of standard input, and the path of the text.

    The file is in the run folder. The caller copies the text into this file, so that a resumed
    run, `eval` and `inspect-batch` can read the text again. The path is None if the config does
    not read standard input."""
    data = config.data
    if STDIN not in (*data.sources, *data.val_sources):
        return config, None
    text = standard_input(data.field)
    there = shown((run / text.name).absolute().as_posix())

    def kept(source: str | list[str]) -> str | list[str]:
        if isinstance(source, str):
            return there if source == STDIN else source
        return [there if one == STDIN else one for one in source]

    val_source = None if data.val_source is None else kept(data.val_source)
    changed = {"source": kept(data.source), "val_source": val_source}
    return config.model_copy(update={"data": data.model_copy(update=changed)}), text


def with_stored_texts(run: Path, stored: Config, config: Config) -> Config:
    """The config of a resumed run, with files in place of standard input.

    The caller has checked that standard input has the run's text. The run read this text from
    files before, and the config names these files again. If they are gone, the run folder gets a
    new copy of the text."""
    data = config.data
    if STDIN not in (*data.sources, *data.val_sources):
        return config
    if texts_exist([*stored.data.sources, *stored.data.val_sources]):
        return config.model_copy(update={"data": stored.data})
    config, text = with_kept_texts(run, config)
    if text is not None:
        shutil.copyfile(text, run / text.name)
    return config
