"""The GitHub workflows that test and publish: few permissions, pinned actions, no credentials."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(path.name for path in FOLDER.glob("*.yml"))


def workflow(name: str) -> dict[Any, Any]:
    """The parsed YAML of a workflow.

    Its key `on` becomes True, because YAML 1.1 reads `on` as true."""
    found: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return found


def steps(name: str) -> list[dict[str, Any]]:
    """The steps of all jobs in a workflow."""
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", FILES)
def test_a_workflow_has_few_permissions_and_ends(name: str) -> None:
    found = workflow(name)
    assert set(found) >= {"name", True, "permissions", "jobs"}
    assert "write" not in found["permissions"].values()
    for job in found["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 60
        assert job["runs-on"] == "ubuntu-latest"
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step


@pytest.mark.parametrize("name", FILES)
def test_actions_are_pinned_and_keep_no_credentials(name: str) -> None:
    """Workflows name an action by its commit, because somebody could move a tag such as v4 to other
    code."""
    text = (FOLDER / name).read_text("utf-8")
    for step in steps(name):
        if "uses" in step:
            action, _, commit = step["uses"].partition("@")
            assert re.fullmatch(r"[0-9a-f]{40}", commit), step
            assert re.search(rf"{action}@{commit} # v\d+\.\d+\.\d+\n", text), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # A stranger can choose values such as the name of a branch. `${{ }}` would insert such
        # a value into the code of a script, so scripts read them from environment variables.
        assert "${{" not in step.get("run", ""), step


def test_publishing_proves_where_it_comes_from() -> None:
    found = workflow("publish.yml")
    assert found[True] == {"push": {"tags": ["v*"]}}
    assert found["permissions"] == {}
    build, publish = found["jobs"]["build"], found["jobs"]["publish"]
    assert build["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert publish["needs"] == "build"
    *_, last = publish["steps"]
    assert last["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in last  # no password, and no other package index than PyPI
    # Only the job `build` runs the project's code, and only the job `publish` has the permission to
    # publish.
    assert not any("run" in step for step in publish["steps"])
    assert "secrets" not in (FOLDER / "publish.yml").read_text("utf-8")
    commands = "\n".join(step.get("run", "") for step in build["steps"])
    assert "pip install -c constraints.txt build twine\n" in commands
    assert "python3 -m build\n" in commands
    assert "twine check --strict dist/*" in commands


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
def test_the_tag_must_be_the_version() -> None:
    """publish.yml compares the tag with gptcli's version: it accepts the tag v + this version, and
    fails for another tag."""
    import gptcli

    (command,) = [step["run"] for step in steps("publish.yml") if "TAG" in step.get("env", {})]
    for tag, code in ((f"v{gptcli.__version__}", 0), ("v99.0.0", 1)):
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=os.environ | {"TAG": tag},
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("name", FILES)
def test_every_make_target_of_a_workflow_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for step in steps(name):
        for target in re.findall(r"^make (.+)$", step.get("run", ""), re.MULTILINE):
            for word in target.split():
                assert re.search(rf"^{word}:", makefile, re.MULTILINE), word


def test_the_package_says_what_it_is() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for key in ("description", "readme", "license", "authors", "keywords", "requires-python"):
        assert project[key], key
    assert len(project["classifiers"]) == len(set(project["classifiers"])) > 10
    # The key `license` already names the licence, so no classifier repeats it.
    assert not any("License" in line for line in project["classifiers"])
