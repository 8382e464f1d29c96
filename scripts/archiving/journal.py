"""What workers leave in the output folder, so that no restored picture is lost or made twice.

A worker writes the picture under a temporary name, then a record of it, and only then gives the
picture its name: a record whose picture is in place is true, whatever was killed in between. The
driver takes records over into the manifest and removes them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pfstorer_core.errors import PFStorerError, first_line

from .listing import OWN, within
from .pictures import digest_of
from .results import Result

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_DEATHS = 3  # of workers over one photo in one run


class OutputError(Exception):
    """The output folder takes no more files: nothing of the photo is wrong, and the run ends."""


class Journal:
    """An output folder's own files.

    Args:
        output: the folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.records = output / OWN / "records"
        self.partial = output / OWN / "partial"
        self.begun = output / OWN / "begun"

    def prepare(self) -> None:
        """Makes the folders and removes what a run before this one left unfinished.

        Raises:
            PFStorerError: the output folder cannot be written to.
        """
        try:
            for folder in (self.partial, self.begun):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in (self.records, self.partial, self.begun):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PFStorerError(
                f"Nothing can be written to '{self.output}' ({first_line(error)}); free some "
                "space, or give a folder that may be written to."
            ) from error

    def write(self, result: Result, output: str, content: bytes) -> None:
        """Puts a restored picture in place, all of it or nothing, with a record.

        Args:
            result: what is recorded.
            output: the picture's name in the output folder.
            content: its file.

        Raises:
            PFStorerError: the name leads out of the folder.
            OutputError: the file system refuses.
        """
        place = within(self.output, output)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            within(self.output, output)  # now that all folders are there
            partial = self._store(content)
            os.replace(self._store(json.dumps(asdict(result)).encode()), self._record(result.path))
            os.replace(partial, place)
        except OSError as error:
            advice = "make room" if error.errno in _FULL else "see whether it may be written to"
            raise OutputError(
                f"'{place}' could not be written ({first_line(error)}); {advice}, and run the same "
                "command again: it goes on where it stopped."
            ) from error

    def _store(self, content: bytes) -> Path:
        partial = self.partial / f"{uuid.uuid4().hex}.part"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return partial

    def _record(self, path: str) -> Path:
        return self.records / f"{_key(path)}.json"

    def read(self, path: str, output: str) -> Result | None:
        """Returns what is recorded of a photo whose restored picture is in place, else None."""
        return self._read(self._record(path), {path: output})

    def _read(self, record: Path, outputs: dict[str, str]) -> Result | None:
        try:
            result = Result(**json.loads(record.read_bytes()))
            content = within(self.output, outputs[result.path]).read_bytes()
        except (OSError, ValueError, TypeError, KeyError, PFStorerError):
            return None
        return result if digest_of(content) == result.output_digest else None

    def all(self, outputs: dict[str, str]) -> Iterator[Result]:
        """Yields what all records of pictures in place say.

        Args:
            outputs: names of the restored pictures, by the originals' paths.
        """
        for record in sorted(self.records.glob("*.json")):
            if (result := self._read(record, outputs)) is not None:
                yield result

    def count(self) -> int:
        """Returns how many photos are recorded that the manifest does not hold yet."""
        return sum(1 for _ in self.records.glob("*.json"))

    def forget(self, path: str) -> None:
        """Removes the record of a photo that the manifest holds."""
        self._record(path).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Removes all records, once the manifest holds what is true of them."""
        for record in self.records.glob("*.json"):
            record.unlink(missing_ok=True)

    def deaths(self, path: str) -> int:
        """Returns how many workers have ended while they had a photo in hand, in this run."""
        try:
            return (self.begun / _key(path)).stat().st_size
        except OSError:
            return 0

    def begin(self, path: str) -> bool:
        """Notes that a photo is begun; False if it has ended too many workers in this run.

        Raises:
            OutputError: the file system refuses.
        """
        marks, deaths = self.begun / _key(path), self.deaths(path)
        try:
            if deaths < MOST_DEATHS:
                with marks.open("ab") as file:
                    file.write(b".")
        except OSError as error:
            raise OutputError(
                f"'{marks}' could not be written ({first_line(error)}); see whether the disk is "
                "full and whether it may be written to, and run the same command again."
            ) from error
        return deaths < MOST_DEATHS

    def end(self, path: str) -> None:
        """Notes that a photo that was begun did not end its worker."""
        (self.begun / _key(path)).unlink(missing_ok=True)


def _key(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
