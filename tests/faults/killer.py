"""What kills a server when its moment has come."""

from __future__ import annotations

import threading
from collections.abc import Callable

from comfyui_server import Server

POLL = 0.0002  # seconds between two looks for a temporary file


class Killer(threading.Thread):
    """Kills a server some time after something is the case, unless it is called off before.

    Args:
        server: the server.
        ready: is asked again and again.
        delay: seconds from then to the kill.
    """

    def __init__(self, server: Server, ready: Callable[[], bool], delay: float) -> None:
        super().__init__(daemon=True)
        self.server, self.ready, self.delay = server, ready, delay
        self.killed = False
        self._called_off = threading.Event()

    def run(self) -> None:
        """Waits and kills."""
        while not self.ready():
            if self._called_off.wait(POLL):
                return
        if not self._called_off.wait(self.delay):
            self.killed = True
            self.server.kill()

    def call_off(self) -> None:
        """Ends the waiting; afterwards `killed` says whether it came too late."""
        self._called_off.set()
        self.join()
