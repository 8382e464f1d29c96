"""What lies in an archive's folder of originals, and what the restored pictures are called."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pfstorer_core.errors import PFStorerError

from .pictures import BY_EXTENSION, FORMATS

OWN = ".pfstorer"  # folder of an archive's own files, beneath the output
MANIFEST, REPORT = "archive.sqlite", "report.html"


@dataclass(frozen=True)
class File:
    """A file of the folder of originals.

    Attributes:
        path: from that folder, with slashes; what is no text in a name is escaped.
        size: in bytes.
        changed: time of the last change in ns.
        is_picture: of a kind that can be read, by its extension, with a name that is text.
    """

    path: str
    size: int
    changed: int
    is_picture: bool


def check_folders(originals: Path, output: Path) -> None:
    """Checks that originals are there and cannot be overwritten.

    Raises:
        PFStorerError: there is no folder of originals, or it lies in the output's.
    """
    if not originals.is_dir():
        raise PFStorerError(f"There is no folder '{originals}'; give the one with the photos.")
    if originals.resolve().is_relative_to(output.resolve()):
        raise PFStorerError(
            f"The originals in '{originals}' would lie in the output folder '{output}', where "
            "files are written; give an output folder that does not hold them."
        )


def files_in(originals: Path, output: Path) -> Iterator[File]:
    """Yields all files of the originals' folder and its subfolders, in the order of their names.

    Folders that are links are not entered, nor is the output, where it lies within.

    Raises:
        PFStorerError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise PFStorerError(
            f"The folder '{error.filename}' cannot be read ({error.strerror}); give the right to "
            "read it, or leave it out."
        ) from error

    for folder, inner, names in os.walk(originals, onerror=refuse):
        inner[:] = sorted(
            name
            for name in inner
            if name != OWN and Path(folder, name).resolve() != output.resolve()
        )
        for name in sorted(names):
            path = Path(folder, name)
            try:
                status = path.stat()
            except OSError:  # a link that leads nowhere: reading it says so
                status = path.lstat()
            inside = path.relative_to(originals).as_posix()
            told = inside.encode("utf-8", "backslashreplace").decode()  # some names are no text
            is_picture = path.suffix.lower() in BY_EXTENSION and told == inside
            yield File(told, status.st_size, status.st_mtime_ns, is_picture)


def output_name(path: str, file_format: str, taken: set[str]) -> str:
    """Returns the name of a restored picture, which no other has, and takes it.

    Names that some file systems hold to be the same are the same here: letters' case and the ways
    to write an accent make no difference.

    Args:
        path: of the original, from its folder.
        file_format: one of FORMATS, or "same".
        taken: keys of the names that others have; the new one is added.
    """
    original = PurePosixPath(path)
    suffix = original.suffix if file_format == "same" else FORMATS[file_format]
    if BY_EXTENSION.get(original.suffix.lower()) == BY_EXTENSION.get(suffix):
        suffix = original.suffix
    name = original.with_suffix(suffix)
    if name_key(name.as_posix()) in taken:
        name = name.with_stem(f"{name.stem}~{hashlib.sha256(path.encode()).hexdigest()[:12]}")
    taken.add(name_key(name.as_posix()))
    return name.as_posix()


def name_key(name: str) -> str:
    """Returns what is equal for names that may be one file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def within(folder: Path, name: str) -> Path:
    """Returns the place of a name in a folder.

    Raises:
        PFStorerError: it lies outside, for example behind a link.
    """
    place = folder / name
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise PFStorerError(
            f"'{name}' leads out of the folder '{folder}'; remove the link that does."
        )
    return place
