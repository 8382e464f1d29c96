"""The tables of tools/evaluate.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .adapters import FULL, Cost
from .tables import SIMILARITY, Figures, interval_text, markdown_table

BASE, LQ, CLEAN = "base", "LQ", "clean"


def method_tables(figures: Figures) -> str:
    """Returns the tables of means and of what the adapters change."""
    kinds, measures = figures.kinds(), figures.measures()
    means = [
        [level, kind, *(interval_text(figures.mean(level, kind, m), m) for m in measures)]
        for level in figures.levels()
        for kind in kinds
    ]
    parts = [markdown_table(["degradation", "picture", *measures], means)]
    columns = ["against the base", "pictures better", "share of the lost returned"]
    for measure in (name for name in measures if name.startswith(SIMILARITY)):
        changes = [
            [
                level,
                kind,
                interval_text(figures.difference(level, kind, BASE, measure), sign=True),
                figures.better(level, kind, BASE, measure),
                interval_text(figures.share_returned(level, kind, measure)),
            ]
            for level in figures.levels()
            for kind in kinds
            if kind not in (LQ, BASE, CLEAN)
        ]
        parts.append(f"The {measure}:\n")
        parts.append(markdown_table(["degradation", "picture", *columns], changes))
    return "\n".join(parts)


def ablation_table(figures: Figures, costs: Mapping[str, Sequence[Cost]]) -> str:
    """Returns the table of variants, each with what its adapters cost, against the full method."""
    measures = [SIMILARITY, "PSNR (dB)", "HaarPSI"]
    rows = []
    for level in figures.levels():
        for kind in (BASE, *costs, CLEAN):
            cells = [interval_text(figures.mean(level, kind, m), m) for m in measures]
            share = against = seconds = "-"
            if kind != FULL:
                difference = figures.difference(level, kind, FULL, SIMILARITY)
                against = interval_text(difference, sign=True)
            if kind in costs:
                share = interval_text(figures.share_returned(level, kind))
            if trained := costs.get(kind):
                seconds = f"{sum(cost.seconds for cost in trained) / len(trained):.0f}"
            rows.append([level, kind, *cells, share, against, seconds])
    columns = ["share of the lost returned", "similarity against full", "training (s)"]
    return markdown_table(["degradation", "variant", *measures, *columns], rows)
