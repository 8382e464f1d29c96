"""What the fault campaign's modules are given and give back, and the table made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN_FAILURES = 3  # in a note; all of them are printed as they happen


@dataclass(frozen=True)
class Settings:
    """How a module is to run.

    Attributes:
        seed: what is random is a function of it.
        quick: a few cases of each fault, in seconds, rather than all.
        workspace: an empty scratch folder of this module's own.
    """

    seed: int
    quick: bool
    workspace: Path


@dataclass(frozen=True)
class Outcome:
    """What came of one kind of fault.

    Attributes:
        fault: what was done.
        tried: times that it was done.
        survived: times that what the note says held afterwards.
        lost: times that it did not; with `survived` it makes `tried`.
        note: what should hold, and figures; what went wrong if anything did.
    """

    fault: str
    tried: int
    survived: int
    lost: int
    note: str

    def __post_init__(self) -> None:
        if self.survived + self.lost != self.tried or min(self.survived, self.lost) < 0:
            raise ValueError(
                f"{self.fault}: {self.survived} survived and {self.lost} lost do not make "
                f"{self.tried} tried"
            )


@dataclass
class Tally:
    """Counts the cases of one kind of fault as they are tried.

    Attributes:
        fault: what is done.
        expected: what should hold after it.
        tried: cases so far.
        failures: a sentence for each case that was lost.
    """

    fault: str
    expected: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, failure: str | None = None) -> None:
        """Counts one case: survived, or lost with a sentence that says what went wrong."""
        self.tried += 1
        if failure is not None:
            self.failures.append(failure)
            print(f"  LOST: {self.fault}: {failure}", flush=True)

    def outcome(self, figures: str = "") -> Outcome:
        """Returns the counts; the note is what should hold, then figures, then failures."""
        notes = [self.expected, figures] if figures else [self.expected]
        if self.failures:
            notes.append("LOST: " + "; ".join(self.failures[:SHOWN_FAILURES]))
        lost = len(self.failures)
        return Outcome(self.fault, self.tried, self.tried - lost, lost, ". ".join(notes))


def markdown_table(parts: Iterable[tuple[Sequence[Outcome], float]]) -> str:
    """Returns the report's table.

    Args:
        parts: the outcomes of each module and the seconds that it took, which stand in the row of
            its first outcome.
    """
    lines = [
        "| fault | tried | survived | lost | what should hold, and figures | seconds |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for outcomes, seconds in parts:
        times = [f"{seconds:.0f}"] + [""] * (len(outcomes) - 1)
        for outcome, time in zip(outcomes, times, strict=True):
            counts = f"{outcome.tried} | {outcome.survived} | {outcome.lost}"
            lines.append(f"| {_cell(outcome.fault)} | {counts} | {_cell(outcome.note)} | {time} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
