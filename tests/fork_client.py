"""Runs gptcli in a fork of the process fork_server.py: python -IS fork_client.py SOCKET [-u]
WORDS...

This process is the client. The fork gets the client's arguments, current folder, environment and
open streams, and the client ends with the fork's exit code. The client imports little, so it starts
much faster than gptcli.
"""

import json
import os
import socket
import sys


def main() -> None:
    streams = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
            streams.append(number)
        except OSError:  # the caller of this client has closed the stream
            pass
    while os.open(os.devnull, os.O_RDONLY) < 3:
        pass  # otherwise the socket could get the number 0, 1 or 2 of a closed stream
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        request = {
            "words": sys.argv[2:],
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "streams": streams,
        }
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(4, "big")], streams)
        server.sendall(data)
        code = server.recv(4)
    os._exit(code[0] if code else 70)


main()
