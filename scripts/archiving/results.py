"""Photos on their way to the workers, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass

WAITING, DONE, FAILED, OTHER, GONE = "waiting", "done", "failed", "other", "gone"
KEPT = "kept"  # of a result: the photo is as it was when it was done
STOPPED = "stopped"  # of a result: nothing is wrong with the photo, but the run cannot go on


@dataclass
class Result:
    """What became of one photo.

    Attributes:
        path: of the original, from its folder.
        state: DONE, FAILED, KEPT or STOPPED.
        digest: SHA-256 of the original, "" if it could not be read.
        settings: digest of what it was restored with.
        seconds: that ComfyUI took, or until it failed.
        worker: name of the process that did it.
        machine: Ray's name of the machine.
        report: what the workflow says of it, and what could not be kept.
        error: a sentence, "" if it is done.
        output_digest: SHA-256 of the restored file, "" if there is none.
        output_size: of the restored file, in bytes.
        ended: when, as ISO 8601 in UTC.
    """

    path: str
    state: str
    digest: str
    settings: str
    seconds: float = 0.0
    worker: str = ""
    machine: str = ""
    report: str = ""
    error: str = ""
    output_digest: str = ""
    output_size: int = 0
    ended: str = ""


@dataclass(frozen=True)
class Task:
    """A photo that waits to be restored.

    Attributes:
        path: of the original, from its folder.
        output: of the restored picture, from the output folder.
        done: digest of the original that was restored with these settings before, or "".
        kept: digest of the picture that it became, or "".
        avoid: machine on which it failed before, or "".
    """

    path: str
    output: str
    done: str = ""
    kept: str = ""
    avoid: str = ""
