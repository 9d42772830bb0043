"""The public interface of `import gptcli`: names, signatures, types, and what it imports."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptcli

KEPT = Path(__file__).with_name("public_api.txt")
"""The public interface as it was last accepted. A change of the interface can affect every user of
the library: state it in CHANGELOG.md. Then run `python -m tests.api.test_api_face`, which writes
public_api.txt again."""


def public_api() -> Iterator[str]:
    """Yield a line for each public name of gptcli, and for each public member of public classes.

    The line of a function has its signature. The members of Config and CausalSelfAttention are left
    out."""
    for name in gptcli.__all__:
        thing = getattr(gptcli, name)
        if not isinstance(thing, type):
            signature = inspect.signature(thing) if inspect.isroutine(thing) else ""
            yield f"{name}{signature}"
            continue
        if name in ("Config", "CausalSelfAttention", "Tokenizer", "GptcliError", "Verdict"):
            yield f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
        else:
            yield f"class {name}"
        if dataclasses.is_dataclass(thing):
            for field in dataclasses.fields(thing):
                yield f"    {name}.{field.name}: {field.type}"
        # `gptcli schema` describes Config, and the course's contract for learners describes
        # CausalSelfAttention.
        if name in ("Config", "CausalSelfAttention"):
            continue
        yield from sorted(members(name, thing))


def members(name: str, cls: type) -> Iterator[str]:
    """Yield a line for each public member of a class, and for some special methods.

    Members are methods, properties and annotated attributes. The fields of a dataclass are left
    out."""
    for member, value in vars(cls).items():
        shown = member in ("__iter__", "__len__", "__bool__", "_repr_html_")
        if member.startswith("_") and not shown:
            continue
        if isinstance(value, property):
            assert value.fget is not None
            kind = value.fget.__annotations__.get("return")
            yield f"    {name}.{member}: {kind} (property)"
        elif inspect.isfunction(value):
            yield f"    {name}.{member}{inspect.signature(value)}"
    if not dataclasses.is_dataclass(cls):
        for member, kind in vars(cls).get("__annotations__", {}).items():
            if not member.startswith("_"):
                yield f"    {name}.{member}: {kind}"


def test_the_public_interface_is_the_kept_one() -> None:
    kept = KEPT.read_text("utf-8").splitlines()
    assert list(public_api()) == kept, "see the docstring of KEPT in this file"


def test_importing_it_imports_nothing_large() -> None:
    """No large package such as PyTorch is imported by `import gptcli`, or by reading gptcli's
    errors, its events, `gptcli.load` or `gptcli.train`."""
    program = """
import json, sys
import gptcli
modules = [set(sys.modules)]
gptcli.GptcliError, gptcli.StepDone, gptcli.Event, gptcli.__version__, dir(gptcli)
modules.append(set(sys.modules))
from gptcli import load, train
modules.append(set(sys.modules))
print(json.dumps([sorted(found) for found in modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    alone, errors, functions = json.loads(done.stdout)
    large = {"torch", "numpy", "pydantic", "typer", "rich", "yaml", "IPython", "tiktoken"}
    for found in (alone, errors, functions):
        assert not large & {name.split(".")[0] for name in found}
    ours = [name for name in alone if name.split(".")[0] == "gptcli"]
    assert ours == ["gptcli"]


def test_every_public_name_is_listed_and_found() -> None:
    assert list(gptcli.__all__) == sorted(gptcli.__all__)
    assert set(gptcli.__all__) <= set(dir(gptcli))
    assert {name for names in gptcli._HOMES.values() for name in names} == set(gptcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        _ = gptcli.generate


def test_an_error_shows_its_hint_in_a_traceback() -> None:
    with pytest.raises(gptcli.GptcliError) as caught:
        gptcli.load("no such run")
    if sys.version_info >= (3, 11):
        assert f"hint: {caught.value.hint}" in caught.exconly()
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]


PROGRAM = """
from pathlib import Path

import torch

import gptcli

model: gptcli.Model = gptcli.load("mine", checkpoint=100, device="cpu")
text: str = model.generate("KING", max_new_tokens=10, stop=["\\n"])
texts: list[str] = model.generate("KING", n=2) + model.generate(["a", "b"])
pieces: list[str] = list(model.stream("KING", top_k=3))
loss: float = model.score(text).loss
logits: torch.Tensor = model.logits(model.tokenizer.encode(text))
layers: int = model.config.model.n_layer
training: gptcli.Training = gptcli.train({"model": {"n_layer": 2}}, out=Path("runs/mine"))
for event in training:
    if isinstance(event, gptcli.StepDone):
        loss = event.loss
    elif isinstance(event, gptcli.Evaluated):
        loss = event.val_loss
last: gptcli.Finished = gptcli.train("tiny", ["train.max_steps=3"]).finish()
run: Path | None = last.run
attention: torch.nn.Module = gptcli.CausalSelfAttention(model.config.model)
error: type[Exception] = gptcli.GptcliError
"""
WRONG = {
    "text: str = model.generate('KING', n=2)": "list[str]",
    "gptcli.train('tiny', minuts=1)": "minuts",
    "gptcli.load('mine', device=3)": "int",
}


@pytest.mark.slow
def test_a_users_program_has_types(tmp_path: Path) -> None:
    """mypy --strict accepts a correct program, and finds the mistake in each wrong program."""
    pytest.importorskip("mypy")

    def check(program: str) -> tuple[int, str]:
        path = tmp_path / "program.py"
        path.write_text(program, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10",
             "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", str(path)],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        return done.returncode, done.stdout

    assert check(PROGRAM) == (0, "Success: no issues found in 1 source file\n")
    for line, word in WRONG.items():
        code, said = check(f"import gptcli\nmodel = gptcli.load()\n{line}\n")
        assert (code, said.count("error:"), word in said) == (1, 1, True), said


if __name__ == "__main__":
    KEPT.write_text("".join(f"{line}\n" for line in public_api()), encoding="utf-8")
