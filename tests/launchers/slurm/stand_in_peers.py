"""The processes of a played training on several nodes: they meet at a port, and each learns how the others ended.

with Peers(["--nnodes", "2", "--node-rank", "0", "--master-port", "29500"]) as peers: ...
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

MEETING_SECONDS = 30.0
"""How long a process waits for the others."""


class LostPeer(Exception):
    """A process of another node is gone."""


class Peers:
    """The connections of the first node's process to all others, or of another to the first.

    Args:
        options: torchrun's; those of a run on one node make a Peers without connections.
    """

    def __init__(self, options: list[str]):
        given = dict(itertools.pairwise(options))
        given |= dict(option.split("=", 1) for option in options if "=" in option)
        given = {name.replace("_", "-"): value for name, value in given.items()}
        self.nodes = int(given.get("--nnodes", 1))
        rank = given.get("--node-rank") or os.environ.get("SLURM_NODEID" if self.nodes > 1 else "", "0")
        self.is_first = int(rank) == 0
        self._address = (given.get("--master-addr", "127.0.0.1"), int(given.get("--master-port", 29500)))
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Peers:
        if self.nodes == 1:
            return self
        # Here, for it is slow to load.
        import socket

        deadline = time.monotonic() + MEETING_SECONDS
        if self.is_first:
            with socket.create_server(self._address) as server:
                server.settimeout(MEETING_SECONDS)
                while len(self._sockets) < self.nodes - 1:
                    self._sockets.append(server.accept()[0])
        while not self._sockets:
            try:
                self._sockets.append(socket.create_connection(self._address))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        for connection in self._sockets:
            connection.setblocking(False)
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._sockets:
            connection.close()

    def stopped(self) -> bool:
        """Whether another process was told to stop; LostPeer if one is gone without a word. For the first node."""
        heard = [_received(connection) for connection in self._sockets]
        if b"" in heard:
            raise LostPeer("connection closed by peer")
        return any(heard)

    def end(self, code: int) -> None:
        """Tell all others that this is the end. For the first node."""
        for connection in self._sockets:
            _send(connection, bytes([code]))

    def follow(self, stop_signal: Callable[[], int]) -> int:
        """Wait for the first node's word; its exit code. LostPeer if it is gone. For all others."""
        told = False
        while (received := _received(self._sockets[0])) is None:
            if stop_signal() and not told:
                told = True
                _send(self._sockets[0], b"s")
            time.sleep(0.02)
        if not received:
            raise LostPeer("connection closed by peer")
        return received[0]


def _received(connection: socket.socket) -> bytes | None:
    """What has arrived; b"" at the end of the connection, None if nothing has."""
    try:
        return connection.recv(1)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _send(connection: socket.socket, word: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.send(word)
