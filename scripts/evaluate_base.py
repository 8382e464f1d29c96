"""Measures a bundled restorer on procedural portraits of identities that no training saw.

    python scripts/evaluate_base.py --out docs/mini_restorer

Writes a Markdown table, a CSV with every picture's figures, and a contact sheet. PSNR, SSIM and
HaarPSI (a weights-free perceptual measure, 1 is equal) of the LQ picture (scaled up bicubically),
the restored one and the autoencoder's round trip, against the clean picture. LPIPS is added where
its backbone weights are on the machine.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor
from torchvision.utils import save_image

LEVELS = ("light", "medium", "extreme")
SIZE = 128
FIRST_IDENTITY = 5_000_000  # far above every number that a training draws


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
    from pfstorer_core import metrics
    from pfstorer_core.degradation import PRESETS, degrade
    from pfstorer_core.host.loading import MINI_RESTORER_PATH, load_base_restorer
    from pfstorer_core.host.sampling import restore
    from pfstorer_core.portraits import render, sample_identities, sample_views

    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "PSNR (dB)": metrics.psnr,
        "SSIM": metrics.ssim,
        "HaarPSI": metrics.haarpsi,
    }
    if metrics.lpips_available():
        measures["LPIPS"] = metrics.lpips

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
    with (options.out / "pictures.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = markdown(rows, list(measures), metrics.bootstrap_interval)
    header = (
        f"{len(numbers)} pictures of {options.identities} identities that no training saw, "
        f"{options.steps} steps of {options.sampler}/{options.scheduler}, start from "
        f"{options.start}, colour fix {options.color_fix}. "
        "Mean [95% bootstrap interval], standard deviation after ±.\n"
    )
    (options.out / "table.md").write_text(header + "\n" + table)
    print(header + "\n" + table)


def markdown(
    rows: list[dict[str, Any]],
    measures: list[str],
    interval: Callable[[Tensor], tuple[float, float, float]],
) -> str:
    """The table of means per level and kind of picture."""
    lines = [
        "| degradation | picture | " + " | ".join(measures) + " |",
        "|---|---|" + "---|" * len(measures),
    ]
    for level in LEVELS:
        for kind in ("LQ", "restored", "round trip"):
            cells = []
            for name in measures:
                values = torch.tensor(
                    [r[name] for r in rows if (r["level"], r["kind"]) == (level, kind)]
                )
                mean, low, high = interval(values)
                form = ".2f" if "dB" in name else ".3f"
                cells.append(f"{mean:{form}} [{low:{form}}, {high:{form}}] ± {values.std():{form}}")
            lines.append(f"| {level} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
