"""Build the wheel, install it into an empty environment, and train from there.

Run by `make wheel-check`; needs the package index. Not a test of the suite, which needs no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output. Exit if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Raise SystemExit with the output of whatever failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("gptcli-*.whl")
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        run(
            scripts / "python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "-c",
            ROOT / "constraints.txt",
            wheel,
            cwd=folder,
        )
        work = folder / "elsewhere"
        work.mkdir()
        gptcli = scripts / "gptcli"
        where = run(scripts / "python", "-c", "import gptcli; print(gptcli.__file__)", cwd=work)
        assert str(ROOT) not in where, f"imported from the checkout: {where}"
        summary = json.loads(run(gptcli, "train", "tiny", "train.max_steps=20", "--json", cwd=work))
        assert summary["steps"] == 20
        sample = json.loads(
            run(gptcli, "sample", "--prompt", "KING", "--max-new-tokens", "20", "--json", cwd=work)
        )
        assert sample["tokens"] == 20
        program = "import gptcli; print(len(gptcli.load().generate('KING', max_new_tokens=20)))"
        assert run(scripts / "python", "-c", program, cwd=work).strip() == "20"
        typed = "import importlib.resources as r; print((r.files('gptcli') / 'py.typed').is_file())"
        assert run(scripts / "python", "-c", typed, cwd=work).strip() == "True"
        ids = run(gptcli, "tokenizer", "encode", "Hello world", "--tokenizer", "gpt2", cwd=work)
        assert ids.split() == ["15496", "995"], ids
        run(gptcli, "page", "--out", "page.html", cwd=work)
        assert 'id="payload">' in (work / "page.html").read_text("utf-8")
        print(f"{wheel.name}: trained {summary['steps']} steps, sampled, wrote a page")


if __name__ == "__main__":
    main()
