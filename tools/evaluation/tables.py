"""Figures of pictures, and the tables, files and contact sheets made of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.measures import metrics
from pfstorer_core.measures.intervals import clustered_interval
from pfstorer_core.pictures.resizing import resize_bicubic

LEVELS = ("light", "medium", "extreme")
SIMILARITY = "identity similarity"  # to other clean pictures of the person
TO_TRUTH = "similarity to the truth"  # to the clean picture of the same view

Interval = tuple[float, float, float]  # value, low, high


def quality_measures() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Returns the measures of (images, targets), LPIPS where its weights are on the machine."""
    measures = {"PSNR (dB)": metrics.psnr, "SSIM": metrics.ssim, "HaarPSI": metrics.haarpsi}
    if metrics.lpips_available():
        measures["LPIPS"] = metrics.lpips
    return measures


class Figures:
    """Measured figures, one row per person, picture, level and kind of picture.

    Attributes:
        rows: values by column, in the order of measuring.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, level: str, kind: str, person: str, values: Mapping[str, Tensor]) -> None:
        """Adds the figures of a person's pictures, each measure (M,)."""
        pictures = len(next(iter(values.values())))
        for k in range(pictures):
            row: dict[str, Any] = {"level": level, "kind": kind, "identity": person, "picture": k}
            self.rows.append(row | {name: round(v[k].item(), 5) for name, v in values.items()})

    def levels(self) -> list[str]:
        """Returns the levels of degradation, in the order of measuring."""
        return list(dict.fromkeys(row["level"] for row in self.rows))

    def kinds(self) -> list[str]:
        """Returns the kinds of pictures, in the order of measuring."""
        return list(dict.fromkeys(row["kind"] for row in self.rows))

    def measures(self) -> list[str]:
        """Returns what was measured, in the order of measuring."""
        columns = dict.fromkeys(column for row in self.rows for column in row)
        return [name for name in columns if name not in ("level", "kind", "identity", "picture")]

    def values(self, level: str, kind: str, measure: str) -> Tensor:
        """Returns one measure as (people, pictures); nan where it was not measured.

        Where people have different numbers of pictures, each one's mean is all there is of them:
        (people, 1).

        Raises:
            KeyError: nothing was measured at this level and of this kind.
        """
        people: dict[str, list[float]] = {}
        for row in self.rows:
            if (row["level"], row["kind"]) == (level, kind):
                people.setdefault(row["identity"], []).append(row.get(measure, float("nan")))
        if not people:
            raise KeyError((level, kind))
        rows = [torch.tensor(values, dtype=torch.float64) for values in people.values()]
        if len({len(row) for row in rows}) > 1:
            rows = [row.mean(0, keepdim=True) for row in rows]
        return torch.stack(rows)

    def mean(self, level: str, kind: str, measure: str) -> Interval | None:
        """Returns a measure's mean and interval over people; None where it was not measured."""
        values = self.values(level, kind, measure)
        return None if bool(values.isnan().any()) else clustered_interval(values)

    def difference(self, level: str, kind: str, other: str, measure: str) -> Interval:
        """Returns the paired difference `kind` - `other` and its interval over people."""
        pair = [self.values(level, name, measure) for name in (kind, other)]
        return clustered_interval(torch.stack(pair, -1), lambda m: m[..., 0] - m[..., 1])

    def better(self, level: str, kind: str, other: str, measure: str) -> str:
        """Returns in how many pictures `kind` is higher than `other`, as "n of m"."""
        first, second = (
            [r[measure] for r in self.rows if (r["level"], r["kind"]) == (level, name)]
            for name in (kind, other)
        )
        higher = sum(a > b for a, b in zip(first, second, strict=True))
        return f"{higher} of {len(first)}"

    def share_returned(self, level: str, kind: str, measure: str = SIMILARITY) -> Interval:
        """Returns which share of the similarity lost by the base `kind` gives back.

        It is the ratio of means (kind - base) / (clean - base), its interval over people.
        """
        triple = [self.values(level, name, measure) for name in (kind, "base", "clean")]
        return clustered_interval(
            torch.stack(triple, -1), lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1])
        )

    def write_csv(self, path: Path) -> None:
        """Writes all rows; a figure that was not measured stays empty."""
        write_csv(path, self.rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows whose columns are those of any of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def interval_text(interval: Interval | None, measure: str = "", sign: bool = False) -> str:
    """Returns "value [low, high]" with the measure's decimals; a dash for no interval."""
    if interval is None:
        return "-"
    form = ("+" if sign else "") + (".2f" if "dB" in measure or "px" in measure else ".3f")
    value, low, high = interval
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def contact_sheet(
    rows: Sequence[tuple[str, Tensor]], columns: Sequence[str], cell: int = 128
) -> Image.Image:
    """Draws labelled rows of pictures.

    Args:
        rows: (label, pictures (B, 3, H, W) in [0, 1]), each with as many pictures as the others.
        columns: B labels.
        cell: side of a drawn picture in pixels.
    """
    font = ImageFont.load_default(size=13)
    left = 16 + max(round(font.getlength(label)) for label, _ in rows)
    top = 24
    sheet = Image.new("RGB", (left + cell * len(columns), top + cell * len(rows)), "white")
    drawing = ImageDraw.Draw(sheet)
    for k, label in enumerate(columns):
        drawing.text((left + k * cell + 4, top / 2), label, "black", font, anchor="lm")
    for row, (label, images) in enumerate(rows):
        middle = top + row * cell + cell / 2
        drawing.text((8, middle), label, "black", font, anchor="lm")
        small = resize_bicubic(images.cpu().float(), (cell, cell))
        for k, image in enumerate(small):
            sheet.paste(to_pil_image(image.clamp(0, 1)), (left + k * cell, top + row * cell))
    return sheet
