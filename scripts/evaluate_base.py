"""Measures a bundled restorer on procedural portraits of identities that no training saw.

    python scripts/evaluate_base.py --out docs/mini_restorer

Writes a Markdown table, a CSV with every picture's figures, and a contact sheet. PSNR, SSIM and
HaarPSI (a weights-free perceptual measure, 1 is equal) of the LQ picture (scaled up bicubically),
the restored one and the autoencoder's round trip, against the clean picture. LPIPS is added where
its backbone weights are on the machine.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from in_process import use_comfyui
from setup_host import REPO
from torchvision.utils import save_image

sys.path.append(str(REPO))  # after ComfyUI comes to the front, which `main` sees to

from evaluation.people import FIRST_IDENTITY
from evaluation.tables import (
    LEVELS,
    interval_text,
    markdown_table,
    quality_measures,
    write_csv,
)

from pfstorer_core.degradation import PRESETS, degrade
from pfstorer_core.metrics import bootstrap_interval
from pfstorer_core.portraits import render, sample_identities, sample_views

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--restorer", type=Path, help="a bundled restorer; the mini restorer by default"
    )
    parser.add_argument(
        "--out", type=Path, default=REPO / "output" / "evaluation", help="folder of the results"
    )
    parser.add_argument("--identities", type=int, default=48)
    parser.add_argument("--views", type=int, default=2, help="pictures per identity")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--color-fix", default="wavelet")
    parser.add_argument("--start", default="LQ image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    use_comfyui()
    from pfstorer_core.host.loading import MINI_RESTORER_PATH, load_base_restorer
    from pfstorer_core.host.sampling import restore

    measures = quality_measures()
    path = options.restorer or MINI_RESTORER_PATH
    model, _, vae = load_base_restorer(path)
    generator = torch.Generator().manual_seed(options.seed)
    numbers = [FIRST_IDENTITY + k for k in range(options.identities) for _ in range(options.views)]
    views = sample_views(len(numbers), generator)
    clean = render(sample_identities(numbers), views, SIZE)  # (N, 3, SIZE, SIZE)
    round_trip = vae.decode(vae.encode(clean.movedim(1, -1))).movedim(-1, 1).clamp(0, 1)

    rows: list[dict[str, Any]] = []
    sheet = [clean[:: options.views][:10]]
    for level in LEVELS:
        lq = degrade(clean, PRESETS[level], generator)
        restored = torch.cat(
            [
                restore(
                    model,
                    vae,
                    part.movedim(1, -1),
                    steps=options.steps,
                    sampler_name=options.sampler,
                    scheduler=options.scheduler,
                    color_fix=options.color_fix,
                    start=options.start,
                    seed=options.seed,
                ).movedim(-1, 1)
                for part in lq.split(16)
            ]
        )
        sheet += [lq[:: options.views][:10], restored[:: options.views][:10]]
        for kind, images in (("LQ", lq), ("restored", restored), ("round trip", round_trip)):
            values = {name: measure(images, clean) for name, measure in measures.items()}
            for k, number in enumerate(numbers):
                picture = {"level": level, "kind": kind, "identity": number, "picture": k}
                rows.append(picture | {name: round(v[k].item(), 5) for name, v in values.items()})

    options.out.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat(sheet), options.out / "sheet.png", nrow=10, padding=0)
    write_csv(options.out / "pictures.csv", rows)
    table = means_table(rows, list(measures))
    header = (
        f"{len(numbers)} pictures of {options.identities} identities that no training saw, "
        f"{options.steps} steps of {options.sampler}/{options.scheduler}, start from "
        f"{options.start}, colour fix {options.color_fix}. "
        "Mean [95% bootstrap interval], standard deviation after ±.\n"
    )
    (options.out / "table.md").write_text(header + "\n" + table)
    print(header + "\n" + table)


def means_table(rows: Sequence[dict[str, Any]], measures: Sequence[str]) -> str:
    """The table of means per level and kind of picture."""
    lines = []
    for level in LEVELS:
        for kind in ("LQ", "restored", "round trip"):
            cells = []
            for name in measures:
                values = torch.tensor(
                    [r[name] for r in rows if (r["level"], r["kind"]) == (level, kind)]
                )
                spread = f"{values.std():{'.2f' if 'dB' in name else '.3f'}}"
                cells.append(f"{interval_text(bootstrap_interval(values), name)} ± {spread}")
            lines.append([level, kind, *cells])
    return markdown_table(["degradation", "picture", *measures], lines)


if __name__ == "__main__":
    main()
