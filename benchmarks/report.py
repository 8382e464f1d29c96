"""Sections of the report and the Markdown file and plots they become."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADING = "## "
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/run.py`. Seconds depend on the machine; the ratios are what carries
over. What is compared was run in turns in one process, and medians are taken, unless a section says
otherwise."""


@dataclass(frozen=True)
class Plot:
    """A picture beside a section.

    Args:
        name: of the file, without folder and ending.
        draw: fills as many axes as there are panels.
        panels: side by side.
    """

    name: str
    draw: Callable[[Sequence[Axes]], None]
    panels: int = 1


@dataclass(frozen=True)
class Section:
    """What one benchmark found.

    Args:
        title: heading.
        text: Markdown under it.
        plot: its picture, if it has one.
    """

    title: str
    text: str
    plot: Plot | None = None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Returns the kind of machine in words."""
    kind = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        kind = "one CUDA GPU"
    return f"{kind}, torch {torch.__version__.split('+')[0]}"


def write_report(
    sections: Sequence[Section], titles: Sequence[str], results: Path, images: Path
) -> None:
    """Writes the sections' plots and Markdown; a file's other sections stay.

    Args:
        sections: what was measured now.
        titles: of all sections there are, in their order.
        results: the Markdown file.
        images: folder of the plots.
    """
    texts = _sections_of(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for section in sections:
        text = f"{section.text}\n\nMeasured on: {machine()}."
        if section.plot is not None:
            path = images / f"benchmarks_{section.plot.name}.png"
            _save(section.plot, path)
            link = Path(os.path.relpath(path, results.parent)).as_posix()
            text += f"\n\n![{section.title}]({link})"
        texts[section.title] = text
    parts = [f"{HEADING}{title}\n\n{texts[title]}" for title in titles if title in texts]
    results.write_text("\n\n".join([INTRODUCTION, *parts]) + "\n", encoding="utf-8")


def _sections_of(results: Path) -> dict[str, str]:
    if not results.is_file():
        return {}
    parts = results.read_text(encoding="utf-8").split(f"\n{HEADING}")[1:]
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def _save(plot: Plot, path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.5 * plot.panels, 3.2), layout="constrained")
    axes = figure.subplots(1, plot.panels, squeeze=False)[0]
    plot.draw(axes)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
