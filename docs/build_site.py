"""Builds the documentation as a website in build/site: `make docs`. The website needs no network.

    python docs/build_site.py [--out FOLDER]

The pages are Markdown files of the repository. NAVIGATION in this file lists them in the order of
the website. The program copies the pages to a temporary folder and changes their links so that they
work in the site. For a link to a file of the code, it makes a page that shows the file. Then
zensical builds the site. The program fails if zensical prints a warning. The program needs the
extra `docs`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent

NAVIGATION: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Begin", (
        ("Start", "docs/README.md"),
            ("Questions", "docs/questions.md"),
        ("Installation", "docs/install.md"),
        ("Words", "docs/words.md"),
    )),
    ("Train", (
        ("Your own text", "docs/own-text.md"),
        ("Stop and resume", "docs/resume.md"),
        ("The live view, runs, tokens", "docs/live.md"),
        ("Loggers", "docs/loggers.md"),
        ("Several GPUs and machines", "docs/ranks.md"),
        ("Large and mixed texts", "docs/data.md"),
    )),
    ("Learn", (
        ("The course", "docs/course/README.md"),
        ("Weeks 1 and 2: attention", "docs/course/week-1-2-attention.md"),
        ("Week 3: norm, MLP, block", "docs/course/week-3-layernorm-mlp-block.md"),
        ("Week 4: a tokenizer", "docs/course/week-4-tokenizer.md"),
        ("Weeks 5 and 6: training", "docs/course/week-5-6-training.md"),
        ("Week 7: sampling", "docs/course/week-7-sampling.md"),
        ("Week 8: key/value cache", "docs/course/week-8-cache.md"),
        ("Week 9: a GPT of 2025", "docs/course/week-9-modern.md"),
        ("Your own attention", "docs/own-attention.md"),
        ("From another course", "docs/course/coming-from/README.md"),
        ("From LLMs from scratch", "docs/course/coming-from/llms-from-scratch.md"),
        ("From Karpathy's videos", "docs/course/coming-from/karpathy.md"),
        ("From ARENA", "docs/course/coming-from/arena.md"),
        ("From CS336", "docs/course/coming-from/cs336.md"),
        ("The code, in ten files", "docs/code.md"),
    )),
    ("Understand a run", (
        ("The report", "docs/report.md"),
        ("Compare, sweep, scaling", "docs/compare.md"),
        ("What the heads look at", "docs/look.md"),
    )),
    ("Use a model", (
        ("Sample", "docs/sample.md"),
        ("Fine-tuning, and LoRA", "docs/finetune.md"),
        ("In Python", "docs/library.md"),
        ("Over HTTP: serve", "docs/serve.md"),
        ("A page to mail", "docs/page.md"),
        ("Export: llama.cpp and others", "docs/export.md"),
        ("Import: GPT-2 and others", "docs/import.md"),
    )),
    ("Reference", (
        ("Commands and options", "docs/reference/commands.md"),
        ("Config keys", "docs/reference/config.md"),
        ("Python", "docs/reference/python.md"),
        ("For scripts", "docs/scripts.md"),
        ("What is installed", "docs/reference/dependencies.md"),
        ("Changes", "CHANGELOG.md"),
    )),
    ("Measured and promised", (
        ("Performance", "docs/performance.md"),
        ("Reliability", "docs/reliability.md"),
        ("Security", "SECURITY.md"),
        ("Predictions for many GPUs", "docs/scaling.md"),
        ("All measurements", "benchmarks/RESULTS.md"),
        ("How settings are chosen", "benchmarks/DIAL.md"),
        ("Is a run ever lost?", "benchmarks/RELIABILITY.md"),
        ("Speed experiments", "benchmarks/LOG.md"),
    )),
    ("Work on gptcli", (
        ("Choices", "docs/design.md"),
        ("Tests and benchmarks", "docs/testing.md"),
        ("Contributing", "CONTRIBUTING.md"),
    )),
)  # fmt: skip
"""The sections of the site: the title of each page, and its file."""

PLACES = {
    "docs/README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""File -> its place in the site, for the pages whose place does not follow from the file name."""

UNSEARCHED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/LOG.md", "gptcli/native/README.md")
"""Pages that the search leaves out, because their many hits would hide the hits of other pages. The
search also leaves out the pages that show a file of the code."""
NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
CODE_ALONE = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n\n"
"""NOT_SEARCHED are the first lines of each page in UNSEARCHED. CODE_ALONE are the first lines of a
page that shows a file of the code."""

LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash", ".c": "c", ".h": "c",
}  # fmt: skip
"""The suffixes of the code files that a page can show, and their languages for the syntax
colours."""

SLUGS = {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}}
"""The setting that makes the anchors of headings in the same way as GitHub."""

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
SHORT = 26  # inline code with at most this many characters is never broken over two lines
NO_PROSE = re.compile(
    r"^(?P<fence>```+)[^\n]*\n.*?^(?P=fence)[ \t]*$|(?<=\n\n)(?:    [^\n]*\n)+|<!--.*?-->",
    re.MULTILINE | re.DOTALL,
)
"""Matches the parts of a page that are not prose: code blocks (fenced, indented) and comments."""


def fail(message: str) -> None:
    """End the program with a message and exit code 1."""
    sys.exit(f"docs: {message}")


def pages() -> list[str]:
    """The files of all pages in the order of the navigation, as paths from the root of the
    repository."""
    return [file for _, section in NAVIGATION for _, file in section]


def place(file: str) -> str:
    """The path, in the site, of the Markdown page or picture that shows `file`."""
    if file in PLACES:
        return PLACES[file]
    path = PurePosixPath(file)
    if path.parts[0] == "docs":
        path = path.relative_to("docs")
    if path.suffix == ".md":
        return str(path.with_name("index.md") if path.name == "README.md" else path)
    return str(path) if path.suffix in (".svg", ".png") else f"source/{path}.md"


def shown(file: str) -> str:
    """The Markdown of a page that shows a file of the code: its name as the title, and its text."""
    text = (ROOT / file).read_text("utf-8")
    fence = "````" if "```" in text else "```"
    language = LANGUAGES[PurePosixPath(file).suffix]
    return f'{CODE_ALONE}# {file}\n\n{fence}{language} linenums="1"\n{text.rstrip()}\n{fence}\n'


def _code(found: re.Match[str]) -> str:
    """Inline code in the form that zensical reads: without the backslash before a bar in a table.
    Short code gets the class `short`."""
    code = found[0].replace("\\|", "|")
    return code + "{.short}" * (len(found[2]) <= SHORT)


class Pages:
    """Writes the Markdown of the site: the pages of the navigation, the files that they link to,
    and their pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        self.waiting = pages()

    def write(self) -> None:
        """Write the Markdown of all pages, and their pictures. Ends the program if a link leads to
        no file, or to a file that no page can show."""
        while self.waiting:
            file = self.waiting.pop(0)
            if file in self.done:
                continue
            self.done.add(file)
            target = self.folder / place(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            suffix = PurePosixPath(file).suffix
            if suffix == ".md":
                text = self._linked(file, (ROOT / file).read_text("utf-8"))
                text = NOT_SEARCHED * (file in UNSEARCHED) + text
                target.write_text(text, "utf-8", newline="\n")
            elif suffix in (".svg", ".png"):
                shutil.copyfile(ROOT / file, target)
            elif suffix in LANGUAGES:
                target.write_text(shown(file), "utf-8", newline="\n")
            else:
                fail(f"no page can show {file}")

    def _linked(self, file: str, text: str) -> str:
        """The text of a page with links that work in the site. Blocks of code stay as they are."""
        parts, end = [], 0
        for block in NO_PROSE.finditer(text):
            parts += [self._prose(file, text[end : block.start()]), block[0]]
            end = block.end()
        return "".join([*parts, self._prose(file, text[end:])])

    def _prose(self, file: str, text: str) -> str:
        """The text between two code blocks, changed for the site: its links work there, and short
        inline code is never broken over two lines."""
        text = LINK.sub(lambda link: link[1] + self._target(file, link[2]) + link[3], text)
        return CODE.sub(_code, text)

    def _target(self, file: str, link: str) -> str:
        """The link in the form that works in the site. `link` stands on the page `file`.

        A link to another website, or to a heading of the page itself, stays as it is."""
        name, hash_, anchor = link.partition("#")
        if not name or re.match(r"[a-z]+:", name):
            return link
        goal = os.path.normpath(PurePosixPath(file).parent / name)
        if not (ROOT / goal).is_file():
            fail(f"{file}: the link {link} leads to no file")
        self.waiting.append(goal)
        start = PurePosixPath(place(file)).parent
        return os.path.relpath(place(goal), start).replace(os.sep, "/") + hash_ + anchor


def version() -> str:
    """The version of gptcli."""
    text = (ROOT / "gptcli" / "__init__.py").read_text("utf-8")
    return re.findall(r'__version__ = "(.+)"', text)[0]


def config() -> dict[str, object]:
    """The configuration of zensical as a dict."""
    return {
        "site_name": "gptcli",
        "site_description": "Train, sample and understand tiny GPTs on the machine you have",
        "copyright": f"gptcli {version()}, MIT licence",
        "docs_dir": "pages",
        "site_dir": "site",
        "use_directory_urls": False,
        "nav": [
            {title: [{name: place(file)} for name, file in section]}
            for title, section in NAVIGATION
        ],
        "theme": {
            "font": False,
            "features": [
                "navigation.sections", "navigation.top", "navigation.footer",
                "toc.follow", "content.code.copy", "search.highlight",
            ],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default",
                 "toggle": {"icon": "lucide/sun", "name": "Switch to dark mode"}},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate",
                 "toggle": {"icon": "lucide/moon", "name": "Switch to light mode"}},
            ],
        },
        "plugins": {"search": {}, "offline": {}},
        # The file under "polyfills" replaces a script that the page would load from a server. The
        # plugin `offline` finds this script by the word iframe-worker.
        "extra": {"generator": False, "polyfills": ["assets/iframe-worker.js"]},
        "extra_css": ["assets/site.css"],
        "markdown_extensions": {
            "admonition": {}, "attr_list": {}, "md_in_html": {}, "tables": {}, "sane_lists": {},
            "toc": {"permalink": True, "slugify": SLUGS},
            "pymdownx.highlight": {"anchor_linenums": True},
            "pymdownx.superfences": {},
        },
    }  # fmt: skip


def build(out: Path) -> None:
    """Build the site into a folder, and replace an earlier site there with all its files.

    Ends the program if the folder holds files but no site, a link is wrong, or zensical prints a
    warning."""
    if importlib.util.find_spec("zensical") is None:
        fail("zensical is not installed; `make docs` installs it if Python is 3.11 or newer")
    is_site = (out / "search.json").is_file() and (out / "index.html").is_file()
    if out.exists() and not is_site and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} is not a site of the docs: name a new folder with --out")
    with tempfile.TemporaryDirectory(prefix="gptcli-site-") as name:
        work = Path(name)
        Pages(work / "pages").write()
        shutil.copytree(ROOT / "docs" / "assets", work / "pages" / "assets")
        # JSON is YAML, too.
        (work / "mkdocs.yml").write_text(json.dumps(config(), indent=1), "utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr.partition("Traceback")[0])
        print(said.strip())
        if done.returncode != 0 or "No issues found" not in said:
            fail("zensical found the problems above")
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "site", out)
    print(f"open {out / 'index.html'}")


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    build(parser.parse_args().out.resolve())


if __name__ == "__main__":
    main()
