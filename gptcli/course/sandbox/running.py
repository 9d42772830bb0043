"""Runs a learner's file and returns its module.

If the file is a notebook, stops with an error, or runs too long, only its imports, functions,
classes and constants run (definitions.py). The file can import the learner's own modules: they can
be beside the file, in the folders above it, and in the current folder.
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

WORK_LIMIT_S = 2.0  # for the code at module level, if it does more than define things
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
"""Names of modules that belong to well-known packages, so that a hint can say `pip install`."""
_ERROR, _CLASSES = "__gptcli_error__", "__gptcli_failed_classes__"
_INSTALLED_AS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "hydra": "hydra-core"}

MAIN_GUARD = 'put all other code under `if __name__ == "__main__":`'


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time, and writes no file with bytecode (.pyc).

    With a .pyc file, Python could miss an edit within the same second, and the .pyc file would stay
    in the learner's folder."""

    def get_code(self, fullname: str) -> CodeType:
        code = self.source_to_code(self.get_data(self.path), self.path)
        assert isinstance(code, CodeType)
        return code


def run_file(file: LearnerFile) -> ModuleType:
    """Run the file and return its module. Raises GptcliError if the file cannot be parsed.

    If the whole file cannot run, `left_out` says which code did not run."""
    tree = parsed(file.name, file.path)
    works = bool(file.cells) or does_work(tree)
    failed: BaseException | None = None
    if not file.cells:
        module, name = _new_module(file, tree)
        try:
            with _as_script(file), _imports_of(file), contextlib.redirect_stdout(sys.stderr):
                if works:
                    with within(WORK_LIMIT_S):
                        _loader_of(module).exec_module(module)
                else:
                    _loader_of(module).exec_module(module)
            return module
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit, if the file calls sys.exit()
            failed = error
            sys.modules.pop(name, None)
    module, _ = _new_module(file, tree)
    with _as_script(file), _imports_of(file), contextlib.redirect_stdout(sys.stderr):
        missing = run_definitions(tree, file.path, vars(module))
    failed = failed or next((error for _, error in missing), None)
    vars(module)[_ERROR] = failed
    vars(module)[_CLASSES] = {
        node.name: error for node, error in missing if isinstance(node, ast.ClassDef)
    }
    return module


def failed_class(module: ModuleType, name: str) -> BaseException | None:
    """The error that the definition of the class `name` raises, or None."""
    found: BaseException | None = vars(module).get(_CLASSES, {}).get(name)
    return found


def failed_classes(module: ModuleType) -> list[str]:
    """The names of the classes whose definitions raise an error."""
    return list(vars(module).get(_CLASSES, {}))


def left_out(file: LearnerFile, module: ModuleType) -> str | None:
    """A note that says which code did not run. None for a notebook, or if the whole file ran."""
    failed = vars(module).get(_ERROR)
    if failed is None or file.cells:
        return None
    place = place_of(failed, file.path)
    where = f"{file.where(place[0])}, `{place[1]}`" if place else "the file"
    if isinstance(failed, ImportError):
        return f"{where} cannot be imported ({in_words(failed)}); the check ran without this module"
    return (
        f"{where} stops the file ({in_words(failed)}); the check used only imports, functions, "
        f"classes and constants; {MAIN_GUARD}"
    )


def error_of(file: LearnerFile, module: ModuleType, name: str = "") -> GptcliError | None:
    """The error in the definition of the class `name`, else the error that stopped the file.

    None if neither exists."""
    failed = failed_class(module, name) or vars(module).get(_ERROR)
    if failed is None:
        return None
    if isinstance(failed, ImportError):
        return import_error(file, failed)
    return GptcliError(
        f"{_at(file, failed)}: {in_words(failed)}",
        f"the file stops before it defines the class; make `python {file.name}` run first",
    )


def import_error(file: LearnerFile, error: ImportError) -> GptcliError:
    """The error for a module that cannot be imported, with a hint on how to install or find it."""
    top = (error.name or "").split(".")[0]
    if top in _PACKAGES:
        hint = f"install it: pip install {_INSTALLED_AS.get(top, top.replace('_', '-'))}"
    elif error.name:
        hint = (
            f"if you wrote `{top}` yourself, run gptcli in the folder in which you run your code; "
            f"gptcli looked in {file.path.parent}, the folders above it and the current folder"
        )
    else:
        hint = "remove this import: torch and its modules are enough"
    message = str(error)
    if top.startswith("_learner_"):  # a relative import
        relative = "." + (error.name or "").partition(".")[2]
        message = f"there is no module `{relative}`"
        hint = f"put the module beside {Path(file.name).name}, or import it without the dot"
    return GptcliError(f"{_at(file, error)}: {message}", hint)


def _at(file: LearnerFile, error: BaseException) -> str:
    place = place_of(error, file.path)
    return file.name if place is None else f"{file.name}:{file.where_in_name(place[0])}"


def _new_module(file: LearnerFile, tree: ast.Module) -> tuple[ModuleType, str]:
    """A new empty module for the file, and the unique name that it has in sys.modules."""
    # Without a unique name, a learner's `attention.py` or `random.py` would hide another module.
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
    sys.modules[name] = module  # dataclasses look for their module in sys.modules
    return module, name


def _loader_of(module: ModuleType) -> importlib.machinery.SourceFileLoader:
    loader = module.__spec__.loader if module.__spec__ else None
    assert isinstance(loader, importlib.machinery.SourceFileLoader)
    return loader


def _packages(top: str, folder: Path, levels: int) -> str:
    """Turn `folder` and the folders above it into packages, so that relative imports work.

    `levels` is the number of packages, and `top` the name of the outermost one. Does not run an
    __init__.py. Returns the name of the package of `folder`."""
    folders = [folder, *folder.parents][:levels][::-1]
    name = top
    for depth, each in enumerate(folders):
        name = top if depth == 0 else f"{name}.{each.name}"
        package = ModuleType(name)
        package.__path__ = [str(each)]
        sys.modules[name] = package
    return name


@contextlib.contextmanager
def _as_script(file: LearnerFile) -> Iterator[None]:
    """Set sys.argv as `python FILE` does, without arguments.

    So a file that parses its arguments gets its default values, not gptcli's arguments."""
    before = sys.argv
    sys.argv = [file.name]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _imports_of(file: LearnerFile) -> Iterator[None]:
    """Make the learner's own modules importable, and remove them from sys.modules afterwards.

    Otherwise the next learner's file could import a `layers.py` of this learner. Modules beside the
    learner's file come first. The folders above it and the current folder come last, so that their
    files hide no installed module."""
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
            # The learner's folder can contain a virtual environment. Its packages must stay loaded.
            if not origin or "site-packages" in origin or name.startswith("_learner_"):
                continue
            if any(Path(origin).parent == p or (p / top) in Path(origin).parents for p in own):
                del sys.modules[name]
