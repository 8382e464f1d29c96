"""What came out of a comparison: pictures, figures, and both in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from . import metrics

Measure = Callable[[Tensor, Tensor], Tensor]

LQ, BASE, RESTORED, PERSONALIZED, TRUTH = "LQ", "base", "restored", "personalized", "truth"
PSNR, SSIM, HAARPSI, LPIPS = "PSNR (dB)", "SSIM", "HaarPSI", "LPIPS"
SIMILARITY = "identity similarity"
AMONG_REFERENCES = "references among themselves"
MEASURES: dict[str, tuple[Measure, int]] = {  # and the smallest side that each can be taken of, px
    PSNR: (metrics.psnr, 1),
    SSIM: (metrics.ssim, 11),
    HAARPSI: (metrics.haarpsi, 16),
    LPIPS: (metrics.lpips, 32),
}
_DIGITS = {PSNR: 2}  # of the others: 3
_SHOWN_NOTES = 8  # in a few lines of text; a large batch may have one per picture


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what came out.

    Attributes:
        columns: by kind in the order LQ, base, restored or personalized, truth, those that were
            given: one picture (3, H, W) in [0, 1] per item, all of an item of one size.
        main: which kind the restored pictures are: "personalized" beside a base, else "restored".
        figures: by kind and measure one value per item (B,), NaN where there is none.
        baseline: mean cosine of the references to each other, NaN of fewer than two.
        references: the photos of the person (3, h, w).
        notes: sentences on what was left out, scaled or looks doubtful.
    """

    columns: dict[str, list[Tensor]]
    main: str
    figures: dict[str, dict[str, Tensor]]
    baseline: float
    references: list[Tensor]
    notes: list[str] = field(default_factory=list)

    def mean(self, measure: str, kind: str | None = None) -> float:
        """Returns a measure's mean over the items that have it, NaN where none has.

        Args:
            measure: its name, for example `PSNR`.
            kind: of the pictures; by default the restored ones.
        """
        values = self.figures[kind or self.main].get(measure)
        return math.nan if values is None else float(values.cpu().double().nanmean())

    def measures(self) -> list[str]:
        """Returns the measures that at least one picture has."""
        return [
            measure
            for measure in (*MEASURES, SIMILARITY)
            if any(not math.isnan(self.mean(measure, kind)) for kind in self.columns)
        ]

    def lines(self) -> list[str]:
        """Returns the means in one line per kind of picture, then the first notes."""
        lines = [
            f"{kind}: " + ", ".join(part for part in parts if part)
            for kind in self.columns
            if any(parts := [self._words(measure, kind) for measure in self.measures()])
        ]
        if not math.isnan(self.baseline):
            lines.append(f"{AMONG_REFERENCES}: {SIMILARITY} {self.baseline:.3f}")
        lines += self.notes[:_SHOWN_NOTES]
        if len(self.notes) > _SHOWN_NOTES:
            lines.append(f"The report has {len(self.notes) - _SHOWN_NOTES} more notes.")
        return lines

    def report(self) -> str:
        """Returns Markdown: a table of means, one of each restored picture, and the notes."""
        measures = self.measures()
        count = len(self.columns[self.main])
        rows = {kind: [self.mean(m, kind) for m in measures] for kind in self.columns}
        if not math.isnan(self.baseline):
            rows[AMONG_REFERENCES] = [
                self.baseline if m == SIMILARITY else math.nan for m in measures
            ]
        rows = {kind: values for kind, values in rows.items() if not all(map(math.isnan, values))}
        parts = []
        if rows:
            parts.append(_table("mean" if count > 1 else "", measures, rows))
            if count > 1:
                each = {
                    str(k + 1): [float(self.figures[self.main][m][k]) for m in measures]
                    for k in range(count)
                }
                parts.append(_table(f"{self.main}, picture", measures, each))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def _words(self, measure: str, kind: str) -> str:
        value = self.mean(measure, kind)
        if math.isnan(value):
            return ""
        name, *unit = measure.replace(")", "").split(" (")
        return " ".join([name, number(measure, value), *unit])


def number(measure: str, value: float) -> str:
    """Returns a value with the digits that a measure is worth, "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{_DIGITS.get(measure, 3)}f}"


def _table(title: str, measures: Sequence[str], rows: dict[str, list[float]]) -> str:
    lines = [
        "| " + " | ".join([title, *measures]) + " |",
        "|---|" + "---:|" * len(measures),
    ]
    for label, values in rows.items():
        cells = [number(m, value) for m, value in zip(measures, values, strict=True)]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)
