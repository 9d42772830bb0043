"""Runs a learner's file and returns its module.

If the file does not run in full, only its imports, functions and classes are run (definitions.py).
Modules of the learner's project are found beside the file, above it, and in the current folder.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

from gptcli.course.sandbox.definitions import does_work, run_definitions
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, parsed, place_of
from gptcli.course.sandbox.time_limit import within
from gptcli.errors import GptcliError

WORK_LIMIT_S = 2.0  # for the code at module level, if the file trains or asks for input there
_FOLDERS_ABOVE = 4
_PACKAGES = {
    "IPython", "accelerate", "beartype", "bitsandbytes", "click", "datasets", "deepspeed",
    "einops", "evaluate", "fancy_einsum", "fire", "flash_attn", "huggingface_hub", "hydra",
    "jax", "jaxtyping", "lightning", "loguru", "matplotlib", "nltk", "numpy", "omegaconf",
    "pandas", "peft", "plotly", "pydantic", "pytorch_lightning", "regex", "requests", "rich",
    "safetensors", "scipy", "seaborn", "sentence_transformers", "sentencepiece", "sklearn",
    "tensorboard", "tensorflow", "tiktoken", "tokenizers", "torchaudio", "torchinfo",
    "torchsummary", "torchvision", "tqdm", "transformer_lens", "transformers", "triton",
    "typing_extensions", "wandb", "xformers", "yaml",
}  # fmt: skip
"""Packages that people install, by the name that they import."""
_ERROR, _CLASSES = "__gptcli_error__", "__gptcli_failed_classes__"
_INSTALLED_AS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "hydra": "hydra-core"}

MAIN_GUARD = 'put the rest under `if __name__ == "__main__":`'


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time.

    A cached bytecode file would be stale after an edit within the same second, and would litter
    the learner's folder."""

    def get_code(self, fullname: str) -> CodeType:
        code = self.source_to_code(self.get_data(self.path), self.path)
        assert isinstance(code, CodeType)
        return code


def run_file(file: LearnerFile) -> ModuleType:
    """Run the file and return its module. Raises GptcliError if it cannot be run.

    `left_out(module)` tells whether only its definitions were run."""
    tree = parsed(file.name, file.path)
    works = bool(file.cells) or does_work(tree)
    failed: BaseException | None = None
    if not file.cells:
        module, name = _new_module(file, tree)
        try:
            with _imports_of(file), contextlib.redirect_stdout(sys.stderr):
                if works:
                    with within(WORK_LIMIT_S):
                        _loader_of(module).exec_module(module)
                else:
                    _loader_of(module).exec_module(module)
            return module
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also sys.exit() at module level
            failed = error
            sys.modules.pop(name, None)
    module, _ = _new_module(file, tree)
    with _imports_of(file), contextlib.redirect_stdout(sys.stderr):
        missing = run_definitions(tree, file.path, vars(module))
    failed = failed or next((error for _, error in missing), None)
    vars(module)[_ERROR] = failed
    vars(module)[_CLASSES] = {
        node.name: error for node, error in missing if isinstance(node, ast.ClassDef)
    }
    return module


def failed_class(module: ModuleType, name: str) -> BaseException | None:
    """The error of the class `name`, if the file defines it but the definition fails."""
    found: BaseException | None = vars(module).get(_CLASSES, {}).get(name)
    return found


def failed_classes(module: ModuleType) -> list[str]:
    """The names of the classes whose definition fails."""
    return list(vars(module).get(_CLASSES, {}))


def left_out(file: LearnerFile, module: ModuleType) -> str | None:
    """What was left out when the file was run, as a note, or None."""
    failed = vars(module).get(_ERROR)
    if failed is None or file.cells:
        return None
    place = place_of(failed, file.path)
    where = f"{file.where(place[0])}, `{place[1]}`" if place else "the file"
    if isinstance(failed, ImportError):
        return f"{where} cannot be imported ({in_words(failed)}): the check goes on without it"
    return (
        f"{where} stops the file ({in_words(failed)}): only its imports, functions and classes "
        f"were used; {MAIN_GUARD}"
    )


def error_of(file: LearnerFile, module: ModuleType, name: str = "") -> GptcliError | None:
    """The reason why the class `name`, or anything else, is not defined in the file, or None."""
    failed = failed_class(module, name) or vars(module).get(_ERROR)
    if failed is None:
        return None
    if isinstance(failed, ImportError):
        return import_error(file, failed)
    return GptcliError(
        f"{_at(file, failed)}: {in_words(failed)}",
        f"the file stops before its class can be used; it must run as `python {file.name}`",
    )


def import_error(file: LearnerFile, error: ImportError) -> GptcliError:
    """What to do about a module that cannot be imported: install a package, or find a file."""
    top = (error.name or "").split(".")[0]
    if top in _PACKAGES:
        hint = f"install it: pip install {_INSTALLED_AS.get(top, top.replace('_', '-'))}"
    elif error.name:
        hint = (
            f"if `{top}` is a module of yours, run gptcli in the folder from which your code runs; "
            f"gptcli looked in {file.path.parent}, the folders above it and the current folder"
        )
    else:
        hint = "do without it: torch and its modules are enough"
    message = str(error)
    if top.startswith("_learner_"):  # a relative import
        relative = "." + (error.name or "").partition(".")[2]
        message = f"there is no module `{relative}`"
        hint = f"put the file beside {Path(file.name).name}, or import it by its name"
    return GptcliError(f"{_at(file, error)}: {message}", hint)


def _at(file: LearnerFile, error: BaseException) -> str:
    place = place_of(error, file.path)
    return file.name if place is None else f"{file.name}:{file.where_in_name(place[0])}"


def _new_module(file: LearnerFile, tree: ast.Module) -> tuple[ModuleType, str]:
    """An empty module for the file, in sys.modules under a name of its own."""
    # A unique name: a learner's `attention.py` or `random.py` must not hide another module.
    key = hashlib.sha256(str(file.path).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    package = f"_learner_{key}"
    levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    if any(levels):
        package = _packages(package, file.path.parent, max(levels))
        name = f"{package}.{file.path.stem}"
    else:
        name = f"{package}_{file.path.stem}"
    spec = importlib.util.spec_from_loader(name, _FreshLoader(name, str(file.path)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    return module, name


def _loader_of(module: ModuleType) -> importlib.machinery.SourceFileLoader:
    loader = module.__spec__.loader if module.__spec__ else None
    assert isinstance(loader, importlib.machinery.SourceFileLoader)
    return loader


def _packages(top: str, folder: Path, levels: int) -> str:
    """Packages for the folder and those above it, so that relative imports find their files.

    Their __init__.py is not run. Returns the name of the folder's package."""
    folders = [folder, *folder.parents][:levels][::-1]
    name = top
    for depth, each in enumerate(folders):
        name = top if depth == 0 else f"{name}.{each.name}"
        package = ModuleType(name)
        package.__path__ = [str(each)]
        sys.modules[name] = package
    return name


@contextlib.contextmanager
def _imports_of(file: LearnerFile) -> Iterator[None]:
    """Make the learner's own modules importable, and forget them afterwards.

    Another learner can have a different `layers.py`. Files beside the learner's file come first.
    The folders above it and the current folder come last, so that they hide nothing."""
    folder = file.folder
    above = [p for p in folder.parents[:_FOLDERS_ABOVE] if p != p.parent]
    more = [str(p) for p in dict.fromkeys([*above, Path.cwd()]) if str(p) not in sys.path]
    before, path, writes = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.path[:] = [str(folder), *path, *more]
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path[:] = path
        own = [folder, *map(Path, more)]
        for name in set(sys.modules) - before:
            top, origin = name.split(".")[0], getattr(sys.modules[name], "__file__", None)
            # Comparing folders is not enough: the folder can contain a virtual environment.
            if not origin or "site-packages" in origin or name.startswith("_learner_"):
                continue
            if any(Path(origin).parent == p or (p / top) in Path(origin).parents for p in own):
                del sys.modules[name]
