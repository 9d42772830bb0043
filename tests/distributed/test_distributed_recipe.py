"""The recipe for Slurm: a linter accepts the script, and the script starts, resumes and requeues a
run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "slurm.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def test_a_linter_finds_nothing() -> None:
    linter = shutil.which("shellcheck")
    command = [linter] if linter is not None else ["bash", "-n"]
    done = subprocess.run([*command, str(RECIPE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a Slurm job.

    PATH leads to imitations of `srun` and `scontrol`, which write their arguments to files.
    `scontrol show` prints the names of two nodes. If the variable SLOW is set, `srun` waits for a
    signal."""
    programs = {
        "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$@" >> requeued',
        "srun": 'echo "$@" > started; trap "exit 1" TERM; [ -z "$SLOW" ] || { sleep 20 & wait; }',
    }
    for name, lines in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "8",
        "SLOW": "",
    }


def test_it_starts_and_then_resumes(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(RECIPE), "big.yaml", "run", "train.seed=2"]
    subprocess.run(command, env=slurm, cwd=tmp_path, check=True)
    started = (tmp_path / "started").read_text()
    assert "--nnodes=2 --nproc-per-node=8" in started
    assert "--rdzv-endpoint=node1:29500" in started
    assert started.endswith("-m gptcli train big.yaml train.seed=2 --out run\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    subprocess.run(command, env=slurm, cwd=tmp_path, check=True)
    assert (tmp_path / "started").read_text().endswith("-m gptcli train --resume --out run\n")
    assert not (tmp_path / "requeued").exists()


def test_a_signal_puts_the_job_back_into_the_queue(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(RECIPE), "big.yaml", "run"]
    job = subprocess.Popen(command, env={**slurm, "SLOW": "1"}, cwd=tmp_path)
    end = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        assert job.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(300) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
