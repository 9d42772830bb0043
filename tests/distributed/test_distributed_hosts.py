"""Two hosts train together, learn what one process learns, and both end after a signal. Two network
namespaces act as the hosts.

The tests need Linux, root and the command `ip` (Debian's package iproute2); they are skipped
elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.launching import SMALL, newest, reached
from tests.distributed.test_distributed_equal import differ, train

pytestmark = pytest.mark.slow
WORDS = (*SMALL, "train.max_steps=20", "train.optimizer=adamw", "train.average=0.2")


@dataclass
class Host:
    """An imitated host: a network namespace, with its network device and IP address."""

    name: str
    device: str
    address: str

    def start(self, number: int, words: list[str], error: Path) -> subprocess.Popen[bytes]:
        """Start torchrun on this host with one rank. The host is node `number` of two nodes."""
        with error.open("w") as file:
            return subprocess.Popen(
                [
                    "ip", "netns", "exec", self.name, sys.executable, "-m",
                    "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                    f"--node-rank={number}", "--master-addr=10.77.0.1", "--master-port=29511",
                    "-m", "gptcli", *words,
                ],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.device},
                start_new_session=True,
            )  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two imitated hosts. A virtual cable connects them, and they have no other network."""
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs Linux, root and `ip`")
    made = [
        Host(f"gptcli-{n}-{os.getpid()}", f"v{n}x{os.getpid()}", f"10.77.0.{n}") for n in (1, 2)
    ]
    with ExitStack() as stack:
        for host in made:
            try:
                ip("netns", "add", host.name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
            stack.callback(ip, "netns", "del", host.name)
        one, two = made
        ip("link", "add", one.device, "netns", one.name, "type", "veth", "peer", "name",
           two.device, "netns", two.name)  # fmt: skip
        for host in made:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.device)
            for device in ("lo", host.device):
                ip("-n", host.name, "link", "set", device, "up")
        yield one, two


def both(hosts: tuple[Host, Host], words: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    return [
        host.start(number, words, folder / f"stderr-{number}") for number, host in enumerate(hosts)
    ]


def ended(nodes: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [node.wait(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.terminate()  # torchrun then ends its rank, too
                node.wait(timeout=60)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_hosts_learn_what_one_process_learns(
    parallel: str, hosts: tuple[Host, Host], text_file: Path, tmp_path: Path
) -> None:
    alone, run = tmp_path / "alone", tmp_path / "run"
    train(text_file, alone, 1, *WORDS)
    words = ["train", "tiny", f"data.source={text_file}", *WORDS, f"run.parallel={parallel}"]
    nodes = both(hosts, [*words, "--out", str(run)], tmp_path)
    assert ended(nodes) == [0, 0], (tmp_path / "stderr-0").read_text()[-3000:]
    assert differ(alone, run) < 1e-5


def test_a_signal_to_one_host_saves_and_ends_both(
    hosts: tuple[Host, Host], text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", "tiny", f"data.source={text_file}", *WORDS, "train.max_steps=100000"]
    nodes = both(hosts, [*words, "--out", str(run)], tmp_path)
    limit, three_steps = time.monotonic() + 300, reached(run, 3)
    while time.monotonic() < limit and nodes[0].poll() is None and not three_steps():
        time.sleep(0.2)
    nodes[1].send_signal(signal.SIGTERM)  # torchrun passes the signal on to its rank
    assert all(code != 0 for code in ended(nodes))
    assert newest(run) > 0
