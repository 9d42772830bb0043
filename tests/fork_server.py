"""Runs `gptcli` in forks of a process that has imported PyTorch, so that each start is fast.

The tests of gptcli's standard streams start a process for each case. If each process imported
PyTorch, it would take a second longer, or more. `python -m tests.fork_server SOCKET` starts a
server that listens on a socket. Instead of `gptcli`, the tests start fork_client.py, which asks the
server for a fork. With --slow (`make slow`), and on Windows, the tests start gptcli itself.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import socket
import sys
import traceback
from typing import Any


def stream(number: int, *, write: bool, unbuffered: bool) -> io.TextIOWrapper | None:
    """The standard stream `number` (0, 1 or 2), opened as Python opens it at startup.

    Returns None if the descriptor `number` is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    raw = io.FileIO(number, "w" if write else "r", closefd=False)
    buffer: Any = raw
    if not write:
        buffer = io.BufferedReader(raw)
    elif not unbuffered:
        buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "strict",
        line_buffering=not unbuffered and (number == 2 or raw.isatty()),
        write_through=unbuffered,
    )


def gptcli(request: dict[str, Any], descriptors: list[int]) -> int:
    """Run `gptcli WORDS` with the client's streams, folder and environment.

    Return the exit code."""
    for number in (0, 1, 2):
        os.close(number)
    for number, descriptor in zip(request["streams"], descriptors, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    words = request["words"]
    unbuffered = words[:1] == ["-u"]
    sys.argv = ["gptcli", *words[unbuffered:]]
    sys.stdin = stream(0, write=False, unbuffered=False)
    sys.stdout = sys.__stdout__ = stream(1, write=True, unbuffered=unbuffered)
    sys.stderr = sys.__stderr__ = stream(2, write=True, unbuffered=unbuffered)
    from gptcli.__main__ import main

    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        code = 120  # Python's own exit code if it cannot flush stdout at its end
    return code if isinstance(code, int) else 1


def warm() -> None:
    """Import the modules that most commands need, so that the forks need not import them."""
    import gc
    import importlib
    import pkgutil

    import torch

    for package in ("cli", "corpus", "model", "sampling", "tokenization", "training", "view"):
        folder = importlib.import_module(f"gptcli.{package}")
        for module in pkgutil.iter_modules(folder.__path__, f"gptcli.{package}."):
            # The module fused_loss_kernel imports Triton, which is not installed everywhere.
            if module.name != "gptcli.model.fused_loss_kernel":
                importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that no fork's garbage collector copies all of the memory


def main() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        warm()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                head, descriptors, _, _ = socket.recv_fds(client, 4, 3)
                length, data = int.from_bytes(head, "big"), b""
                while len(data) < length:
                    data += client.recv(length - len(data))
                pid = os.fork()
                if pid == 0:
                    code = 70
                    try:
                        listener.close()
                        client.detach()  # the fork's parent sends the exit code to the client
                        code = gptcli(json.loads(data), descriptors)
                    finally:
                        os._exit(code)
                for descriptor in descriptors:
                    os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                client.send(bytes([code if code >= 0 else 128 - code]))


if __name__ == "__main__":
    main()
