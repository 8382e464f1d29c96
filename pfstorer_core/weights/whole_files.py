"""Files that appear under their names only once they are complete; without torch."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import safetensors

from ..errors import PFStorerError, first_line

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, partial: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file that appears under its name only once it is complete.

    Args:
        path: the file; folders that lack are made, an old file is replaced.
        partial: temporary name in the same folder.
        write: writes everything into the opened file.

    Raises:
        PFStorerError: the file system refuses, or memory runs out; an old file is then unharmed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            # where the folder is no folder or read-only, it is not there either
            with contextlib.suppress(OSError):
                partial.unlink()
    # PyTorch's writer hides what the file system said behind a RuntimeError of its own
    except (OSError, safetensors.SafetensorError, MemoryError, RuntimeError) as error:
        refused = error.__context__ if isinstance(error, RuntimeError) else error
        reason = first_line(refused or error)
        advice = "free some space or choose another folder"
        if isinstance(refused, OSError) and refused.errno not in _NO_SPACE:
            advice = "see whether the folder is there and may be written to, or choose another"
        raise PFStorerError(f"'{path}' could not be written ({reason}); {advice}.") from error
