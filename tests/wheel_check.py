"""Builds the wheel, installs it into an empty environment, and trains there.

`make wheel-check` runs this program. pytest does not run it, because it needs the package index.
The environment holds only the packages that gptcli needs to run. If uv is installed, the
program also trains and samples with `uvx`, from the same wheel files and without the index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ("-m", "pip", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its stdout. If the command fails, exit with its output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, encoding="utf-8", env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    return done.stdout


def train_and_sample(*gptcli: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Train on the shipped text for a few steps and sample, as a user without a checkout does."""
    summary = json.loads(
        run(*gptcli, "train", "tiny", "train.max_steps=20", "--json", cwd=cwd, env=env)
    )
    assert summary["steps"] == 20
    words = ("sample", "--prompt", "KING", "--max-new-tokens", "20", "--json")
    assert json.loads(run(*gptcli, *words, cwd=cwd, env=env))["tokens"] == 20
    # Train without a config: gptcli chooses all settings.
    run(*gptcli, "train", "--minutes", "0.2", "--out", "runs/chosen", cwd=cwd, env=env)
    assert run(*gptcli, "sample", "chosen", "--max-new-tokens", "20", cwd=cwd, env=env).strip()


def refuse_more_than_needed(site_packages: Path) -> None:
    """Fail if a package that gptcli needs is missing, or if one that only extras need is installed.

    Checks a few packages of each kind."""
    there = {found.metadata["Name"].lower() for found in distributions(path=[str(site_packages)])}
    needed = {"gptcli", "torch", "numpy", "typer", "pydantic"}
    assert needed <= there, needed - there
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    names = {name.lower() for name in re.findall(r'"([\w-]+)(?:\[\w+\])?[><=]', extras)}
    more = {"pytest", "ruff", "mypy", "gguf", "onnx", "starlette", "uvicorn", "pyarrow"}
    assert more <= names
    assert not more & there, f"installed without being needed: {more & there}"


def main() -> None:
    """Build the wheel, install it and try it. Exit with an error if something fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = (sys.executable, *PIP)
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("gptcli-*.whl")
        # Collect all wheels that gptcli needs, so that pip and uv install the same files.
        wheels = folder / "wheels"
        pinned = ("-c", ROOT / "constraints.txt")
        run(*pip, "wheel", "--quiet", *pinned, "--wheel-dir", wheels, wheel, cwd=folder)
        here = ("--no-index", "--find-links", wheels)
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        run(scripts / "python", *PIP, "install", "--quiet", *here, wheel, cwd=folder)
        find = "import sysconfig; print(sysconfig.get_path('purelib'))"
        refuse_more_than_needed(Path(run(scripts / "python", "-c", find, cwd=folder).strip()))
        work = folder / "elsewhere"
        work.mkdir()
        gptcli = scripts / "gptcli"
        where = run(scripts / "python", "-c", "import gptcli; print(gptcli.__file__)", cwd=work)
        assert str(ROOT) not in where, f"imported from the checkout: {where}"
        train_and_sample(gptcli, cwd=work)
        program = "import gptcli; print(len(gptcli.load().generate('KING', max_new_tokens=20)))"
        assert run(scripts / "python", "-c", program, cwd=work).strip() == "20"
        typed = "import importlib.resources as r; print((r.files('gptcli') / 'py.typed').is_file())"
        assert run(scripts / "python", "-c", typed, cwd=work).strip() == "True"
        ids = run(gptcli, "tokenizer", "encode", "Hello world", "--tokenizer", "gpt2", cwd=work)
        assert ids.split() == ["15496", "995"], ids
        run(gptcli, "page", "--out", "page.html", cwd=work)
        assert 'id="payload">' in (work / "page.html").read_text("utf-8")
        print(
            f"{wheel.name}: trained, sampled and wrote a page with the runtime dependencies alone"
        )
        check_uvx(wheel, wheels, folder)


def check_uvx(wheel: Path, wheels: Path, folder: Path) -> None:
    """Train and sample with `uvx --from WHEEL gptcli`, if uv is installed.

    uvx takes all packages from the folder `wheels`."""
    uvx = shutil.which("uvx") or shutil.which("uvx", path=Path(sys.executable).parent)
    if uvx is None:
        print("uv is not installed: uvx was not tried")
        return
    work = folder / "with-uvx"
    work.mkdir()
    command = (uvx, "--offline", "--no-config", "--python", sys.executable,
               "--no-index", "--find-links", wheels, "--from", wheel, "gptcli")  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    env |= {"UV_CACHE_DIR": str(folder / "uv-cache"), "UV_TOOL_DIR": str(folder / "uv-tools")}
    train_and_sample(*command, cwd=work, env=env)
    print(f"{wheel.name}: trained and sampled by uvx")


if __name__ == "__main__":
    main()
