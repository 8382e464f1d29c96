"""Ends a process and removes a folder when whoever started this script is gone: `PID FOLDER`.

However a worker ends, its end of this script's standard input is closed. Started with `-S` and by
its path: it needs the standard library alone.
"""

import os
import shutil
import signal
import sys


def main() -> None:
    """Waits for the end of the standard input, then ends and removes."""
    pid, folder = int(sys.argv[1]), sys.argv[2]
    # What ends the worker's whole group, such as Ctrl+C, must not end the guard before its work.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Ray ends the children of a worker that it ends; a grandchild lives on.
    if hasattr(os, "fork") and os.fork():
        return
    sys.stdin.buffer.read()
    try:
        if os.name == "nt":
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(pid, signal.SIGKILL)  # the server leads a group of its own
    except (ProcessLookupError, PermissionError):
        pass
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
