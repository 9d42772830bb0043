"""Writes a model as a folder of ONNX files for onnxruntime, Optimum and transformers.js.

The files have the names and places that transformers.js expects. `onnx/model.onnx` has inputs and
outputs for a key/value cache. `onnx/model_without_cache.onnx` has no cache, so it reads complete
texts. All other files are those of a Hugging Face folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.interop import hugging_face
from gptcli.training.loading import Trained

WITH_CACHE, WITHOUT_CACHE = "onnx/model.onnx", "onnx/model_without_cache.onnx"

EXTERNAL_BYTES = 1 << 30
"""If the weights have more bytes than this, they are written to a separate file, because a protobuf
can have only 2 GB."""


def write_folder(trained: Trained, folder: Path, *, external_bytes: int = EXTERNAL_BYTES) -> None:
    """Write a model's two ONNX files, its config and its tokenizer into an empty folder.

    The package onnx must be installed."""
    from gptcli.interop import onnx_graph

    (folder / "onnx").mkdir()
    for name, cache in ((WITH_CACHE, True), (WITHOUT_CACHE, False)):
        external = _save(
            onnx_graph.build(trained.model, cache=cache), folder / name, external_bytes
        )
    # Without a dtype, transformers.js in a browser asks for another file, model_quantized.onnx.
    settings: dict[str, Any] = {"dtype": "fp32"}
    if external:
        # The value 1 is the number of files with weights.
        settings["use_external_data_format"] = {Path(WITH_CACHE).name: 1}
    hugging_face.write_settings(trained, folder, {"transformers.js_config": settings})


def _save(model: Any, path: Path, external_bytes: int) -> bool:
    """Write a model to the file `path`, and return whether its weights are in a separate file.

    They are in the file NAME_data, next to the file NAME, if they have more than `external_bytes`
    bytes."""
    import onnx

    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size <= external_bytes:
        onnx.save_model(model, path)
        return False
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}_data",
    )
    return True
