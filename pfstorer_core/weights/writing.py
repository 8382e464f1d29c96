"""Writing of weight files, whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
from torch import Tensor

from ..errors import PFStorerError, first_line
from .digests import DIGEST_KEY, file_digest
from .whole_files import write_whole

_ABANDONED_AFTER = 600.0  # seconds without a change of a temporary file
_PARTIAL = re.compile(r"\..+\.safetensors\.[0-9a-f]{32}\.part")


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file that appears under its name only once it is complete.

    Args:
        path: the file, ending in .safetensors; folders that lack are made, an old file is replaced.
        tensors: tensors by key; they share no memory.
        metadata: texts by key.

    Raises:
        PFStorerError: another ending, or the file system refuses; an old file is then unharmed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise PFStorerError(f"'{path.name}' must end in .safetensors; rename it.")
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    described = {**metadata, DIGEST_KEY: file_digest(stored, metadata)}
    partial = _partial(path)
    _remove_abandoned(path.parent)

    def write(file: BinaryIO) -> None:
        content = memoryview(safetensors.torch.save(stored, described))
        end = 8 + int.from_bytes(content[:8], "little")
        # The library writes metadata in any order; the same content is to be the same file.
        header = json.loads(bytes(content[8:end]))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(content[end:])

    write_whole(path, partial, write)


def check_writable(folder: Path, needed: int = 0) -> None:
    """Makes a folder and finds out whether files can be written there, before long work begins.

    Args:
        folder: the folder.
        needed: bytes that will be written.

    Raises:
        PFStorerError: the file system refuses, or has too little room.
    """
    probe = _partial(folder / "probe.safetensors")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PFStorerError(
            f"Nothing can be written to '{folder}' ({first_line(error)}); free some space or give "
            "ComfyUI the right to write there."
        ) from error
    if free < needed:
        raise PFStorerError(
            f"'{folder}' has {free / 2**20:.0f} MiB of free space, but {needed / 2**20:.0f} MiB "
            "are needed; free some space."
        )


def _partial(path: Path) -> Path:
    """Returns a new temporary name, in the same folder because renames there are atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers left behind that were killed; one that still writes is left alone."""
    for partial in folder.glob(".*.part"):
        if not _PARTIAL.fullmatch(partial.name):
            continue
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER:
                partial.unlink()
