"""What became of each photo of an archive, in an SQLite file that only the driver writes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pfstorer_core.errors import PFStorerError, first_line

from .journal import Journal
from .listing import MANIFEST, File, name_key, output_name
from .results import DONE, FAILED, GONE, KEPT, OTHER, WAITING, Result, Task

LOCKED = 120.0  # seconds that the list waits for others who look at it
_TABLES = """
CREATE TABLE IF NOT EXISTS photos (
  path TEXT PRIMARY KEY,        -- of the original, from the folder of originals
  output TEXT UNIQUE,           -- of the restored picture, from the output folder
  size INTEGER NOT NULL,        -- of the original's file, in bytes
  changed INTEGER NOT NULL,     -- when the original was last changed, in ns
  state TEXT NOT NULL,          -- waiting, done, failed, other (no photo), gone (no original)
  digest TEXT, settings TEXT, attempts INTEGER NOT NULL DEFAULT 0, seconds REAL, worker TEXT,
  machine TEXT, report TEXT, error TEXT, output_digest TEXT, output_size INTEGER, ended TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (digest TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
"""


class Manifest:
    """The table of an output folder; use it as a context manager.

    Args:
        output: the folder.
        settings: digest of what photos are now restored with.

    Raises:
        PFStorerError: the file is damaged, or cannot be written.
    """

    def __init__(self, output: Path, settings: str) -> None:
        self.path, self.output, self.settings = output / MANIFEST, output, settings
        with self._told():
            self._connection = sqlite3.connect(self.path, LOCKED, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.executescript(_TABLES)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what SQLite raises into a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise PFStorerError(
                f"The list of photos '{self.path}' cannot be used ({first_line(error)}); see "
                "whether its disk is full and whether it may be written to."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Writes all of a block or nothing."""
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def note_settings(self, content: str) -> None:
        """Keeps what the settings' digest stands for."""
        with self._writing() as table:
            table.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (self.settings, content))

    def take_over(self, journal: Journal) -> None:
        """Writes down what workers did that no driver lived to write down."""
        self.record(journal.all(self.outputs()), attempts=1)
        journal.forget_all()

    def update(self, files: Iterable[File], file_format: str) -> None:
        """Takes over what lies in the folder of originals now.

        Photos that are new, have changed, failed, or were done with other settings become WAITING,
        as do those whose restored picture is not there any more.

        Raises:
            PFStorerError: a file stands where a new picture would be written.
        """
        with self._told():
            known = {row["path"]: row for row in self._connection.execute("SELECT * FROM photos")}
        taken = {name_key(row["output"]) for row in known.values() if row["output"]}
        with self._writing() as table:
            for file in files:
                old = known.pop(file.path, None)
                if not file.is_picture:
                    columns = (file.path, file.size, file.changed, OTHER)
                    table.execute(
                        "INSERT OR REPLACE INTO photos (path, size, changed, state) "
                        "VALUES (?, ?, ?, ?)",
                        columns,
                    )
                elif old is None or not old["output"]:
                    self._insert(table, file, output_name(file.path, file_format, taken))
                else:
                    output = old["output"]
                    if not _same_kind(output, file.path, file_format):
                        output = output_name(file.path, file_format, taken)
                        self._check_free(output)
                    state = self._state(old, file, output)
                    table.execute(
                        "UPDATE photos SET output = ?, size = ?, changed = ?, state = ?, "
                        "attempts = 0 WHERE path = ?",
                        (output, file.size, file.changed, state, file.path),
                    )
            for path in known:
                table.execute("UPDATE photos SET state = ? WHERE path = ?", (GONE, path))

    def _insert(self, table: sqlite3.Connection, file: File, output: str) -> None:
        self._check_free(output)
        table.execute(
            "INSERT OR REPLACE INTO photos (path, output, size, changed, state) "
            "VALUES (?, ?, ?, ?, ?)",
            (file.path, output, file.size, file.changed, WAITING),
        )

    def _check_free(self, output: str) -> None:
        if (self.output / output).exists():
            raise PFStorerError(
                f"'{self.output / output}' is there already and was not written by this archive; "
                "move it away, or give another output folder."
            )

    def _state(self, old: sqlite3.Row, file: File, output: str) -> str:
        same = (old["size"], old["changed"], old["settings"], old["output"])
        if same != (file.size, file.changed, self.settings, output) or not old["output_digest"]:
            return WAITING
        place = self.output / output
        there = place.is_file() and place.stat().st_size == old["output_size"]
        return DONE if there and old["state"] in (DONE, GONE) else WAITING

    def waiting(self) -> list[Task]:
        """Returns the photos that have not come to an end, in the order of their names."""
        with self._told():
            rows = self._connection.execute(
                "SELECT * FROM photos WHERE state = ? ORDER BY path", (WAITING,)
            ).fetchall()
        tasks = []
        for row in rows:
            # Its file was touched; whether it is another picture now, its digest tells.
            known = row["output_digest"] and row["settings"] == self.settings
            done, kept = (row["digest"], row["output_digest"]) if known else ("", "")
            avoid = (row["machine"] or "") if row["attempts"] else ""
            tasks.append(Task(row["path"], row["output"], done, kept, avoid))
        return tasks

    def record(self, results: Iterable[Result], attempts: int) -> list[Result]:
        """Writes down what became of photos, and returns those that came to an end.

        Args:
            results: of some photos.
            attempts: times that a photo is tried; one that fails before the last waits again.
        """
        ended = []
        with self._writing() as table:
            for result in results:
                if result.state == KEPT:
                    command = "UPDATE photos SET state = ? WHERE path = ?"
                    table.execute(command, (DONE, result.path))
                    ended.append(result)
                    continue
                values: dict[str, Any] = asdict(result)
                (tried,) = table.execute(
                    "SELECT attempts FROM photos WHERE path = ?", (result.path,)
                ).fetchone()
                again = result.state == FAILED and tried + 1 < attempts
                values |= {"state": WAITING if again else result.state, "attempts": tried + 1}
                assignments = ", ".join(f"{name} = :{name}" for name in values if name != "path")
                table.execute(f"UPDATE photos SET {assignments} WHERE path = :path", values)
                if not again:
                    ended.append(result)
        return ended

    def outputs(self) -> dict[str, str]:
        """Returns the names of the restored pictures, by the originals' paths."""
        with self._told():
            rows = self._connection.execute("SELECT path, output FROM photos WHERE output NOTNULL")
            return {row["path"]: row["output"] for row in rows}

    def counts(self) -> Counter[str]:
        """Returns how many photos are in each state."""
        with self._told():
            rows = self._connection.execute("SELECT state, count(*) FROM photos GROUP BY state")
            return Counter({row[0]: row[1] for row in rows})

    def results(self, state: str) -> Iterator[tuple[Result, str]]:
        """Yields all photos in a state, with their outputs' names, in the order of their names."""
        names = [field.name for field in fields(Result)]
        with self._told():
            rows = self._connection.execute(
                "SELECT * FROM photos WHERE state = ? ORDER BY path", (state,)
            )
            for row in rows:
                values = {name: row[name] for name in names if row[name] is not None}
                yield (
                    Result(**{"digest": "", "settings": "", **values}),
                    row["output"] or "",
                )


def _same_kind(output: str, path: str, file_format: str) -> bool:
    """Tells whether a restored picture's name is of the format that is wanted now."""
    wanted = output_name(path, file_format, set())
    return wanted.rpartition(".")[2] == output.rpartition(".")[2]
