"""Exports a trained model: writes the files, proves them, and writes the model card."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from gptcli.files import durable
from gptcli.files.paths import refuse_existing
from gptcli.interop import adapter_folder, gguf_file, hugging_face, model_card, onnx_folder, proof
from gptcli.plurals import counted
from gptcli.training.loading import Trained

Format = Literal["huggingface", "gguf", "onnx"]


@dataclass(frozen=True)
class Export:
    """What an export wrote, the result of its proof, and what the other program cannot do."""

    format: Format
    path: Path
    files: tuple[str, ...]
    proof: proof.Proof
    not_expressible: tuple[str, ...]


def export(
    trained: Trained, to: Format, out: Path, type_name: str = "f32", *, merge: bool = False
) -> Export:
    """Write a trained model to `out`, which must not exist, in the format `to`.

    In Hugging Face's format, a run with low-rank adapters becomes its base model and a folder
    `adapter` in peft's format. In the other formats, or if `merge` is true, the run becomes one
    model with the adapters merged. The network must have only builtin parts, and the tokenizer must
    not be the user's. For GGUF, `out` is a file in which the matrices have the type `type_name`.
    For the other formats, it is a folder. `out` appears only when it is complete. If the other
    program is installed, `out` appears only after the proof. Raises GptcliError if `out` exists or
    cannot be written, and (exit code 1) if the other program computes something else."""
    assert not trained.model.user_parts.in_network()
    assert trained.tokenizer.kind != "own"
    refuse_existing(out)
    durable.delete_abandoned(out)
    temporary = durable.temporary_path(out)
    with durable.path_errors(out.parent):
        made = durable.make_folder(out.parent)
    limits = not_expressible(trained, to)
    try:
        with _write_errors(out):
            if to == "gguf":
                gguf_file.write_file(trained, temporary, type_name)
                found = proof.gguf(trained, temporary, type_name)
                files = [temporary]
            else:
                temporary.mkdir()
                if to == "onnx":
                    onnx_folder.write_folder(trained, temporary)
                    found = proof.onnx(trained, temporary)
                elif adapter_folder.has_adapters(trained.config) and not merge:
                    found = _write_with_adapter(trained, temporary)
                else:
                    hugging_face.write_folder(trained, temporary)
                    found = proof.hugging_face(trained, temporary)
                model_card.write(trained, temporary, to, found, limits)
                files = sorted(path for path in temporary.rglob("*") if path.is_file())
            names = tuple(
                out.name if path == temporary else path.relative_to(temporary).as_posix()
                for path in files
            )
            for path in files:
                path.chmod(0o666 & ~_umask())  # otherwise only the owner could read it
                durable.fsync_file(path)
            for folder in {path.parent for path in files} - {out.parent}:
                durable.fsync_folder(folder)
            durable.disk.rename(temporary, out)
            durable.fsync_folder(out.parent)
    except BaseException:
        durable.remove_tree(temporary)
        durable.remove_made(made)
        raise
    return Export(to, out, names, found, limits)


def _write_with_adapter(trained: Trained, folder: Path) -> proof.Proof:
    """Write the base model and its adapter, prove both, and return the result."""
    base, adapters = adapter_folder.split(trained)
    hugging_face.write_folder(base, folder)
    adapter_folder.write_adapter(base, adapters, folder / adapter_folder.ADAPTER)
    of_base = proof.hugging_face(base, folder)
    if of_base.largest_difference is None:
        return of_base
    of_adapter = proof.adapter(trained, folder, folder / adapter_folder.ADAPTER)
    return replace(of_adapter, texts=of_base.texts)


@contextlib.contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Raise GptcliError for an error that occurs while `out` is written, such as a full disk."""
    try:
        yield
    except SafetensorError as error:
        # The error of safetensors has the system's error number only in its text: "(os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise durable.folder_error(out, OSError(code, os.strerror(code))) from None
    except OSError as error:
        raise durable.folder_error(out, error) from None


def _umask() -> int:
    """The umask: the permission bits that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def not_expressible(trained: Trained, to: Format) -> tuple[str, ...]:
    """Sentences for the user that say what the other program cannot do as gptcli does it."""
    config = trained.config.model
    found: tuple[str, ...] = ()
    if to == "onnx":
        found = (
            "The ONNX files compute logits. The program that runs them chooses the next token.",
        )
    if config.traits.positions == "learned":
        program = {"gguf": "llama.cpp", "huggingface": "GPT2LMHeadModel", "onnx": "onnxruntime"}[to]
        does = "cannot continue texts past" if to == "gguf" else "raises an error for texts past"
        return (
            *found,
            f"{program} {does} {counted(config.block_size, 'token')}. gptcli goes on and drops the "
            "oldest half of the window.",
        )
    if to == "gguf" or (to == "huggingface" and config.traits.model_type == "llama"):
        program = "llama.cpp" if to == "gguf" else "LlamaForCausalLM"
        return (
            f"{program} has no sliding window for this layout. Past "
            f"{counted(config.block_size, 'token')} it looks at all earlier tokens, so its "
            "texts differ from gptcli's.",
        )
    return found
