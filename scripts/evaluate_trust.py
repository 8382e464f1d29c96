"""Measures what looks at a picture before it is restored: automatic gamma and the person check.

    python scripts/evaluate_trust.py                # all, with the mini restorer
    python scripts/evaluate_trust.py --only gamma

Runs in ComfyUI's environment (scripts/setup_host.py makes one). People, adapters and their cache
are those of scripts/evaluate.py: give the same --out, and no adapter is trained twice. Writes
Markdown tables to OUT. Intervals are 95% bootstraps that resample people and their pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from setup_host import REPO
from torch import Tensor

sys.path.append(str(REPO))  # after ComfyUI comes to the front, which `main` sees to

from evaluate_tiles import TRAINED, Trial, parse_sections, run_sections
from evaluation.people import Person, derive_seed
from evaluation.tables import SIMILARITY, Figures, interval_text, markdown_table

from pfstorer_core.adapter import IdentityAdapter
from pfstorer_core.automatic_gamma import degradation_level
from pfstorer_core.degradation import PRESETS, DegradationConfig, StageConfig, degrade
from pfstorer_core.metrics import clustered_interval, psnr
from pfstorer_core.portraits import portrait_set
from pfstorer_core.similarity import identity_similarity

if TYPE_CHECKING:
    from pfstorer_core.host.person_check import PersonCheck

FIRST_STRANGER = 6_000_000
PSNR = "PSNR (dB)"
GAMMAS = (0.0, 0.5, 1.0)
AUTO, ONE, LEVEL = "auto", "1", "level of degradation"
STRENGTHS = {
    # A good photo saved once more.
    "trace": DegradationConfig(
        first=StageConfig(
            blur_sigma=(0.0, 0.5),
            noise_sigma=(0.0, 1.0),
            jpeg_quality=(90.0, 98.0),
            resize_weights=(0.0, 0.0, 1.0),
        ),
        second_order_probability=0.0,
        downsample=(1.0, 1.0),
        final_sinc_probability=0.0,
    ),
    "light": PRESETS["light"],
    "medium": PRESETS["medium"],
    "heavy": replace(
        PRESETS["medium"],
        first=replace(PRESETS["medium"].first, noise_sigma=(3.0, 15.0), jpeg_quality=(40.0, 80.0)),
        second_order_probability=1.0,
        downsample=(5.0, 7.0),
    ),
    "extreme": PRESETS["extreme"],
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parse_sections(__doc__, list(SECTIONS), arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen sections."""
    run_sections(parse(arguments), SECTIONS, "trust")


def degraded(person: Person, strength: str) -> tuple[Tensor, int]:
    """Returns a person's held-out pictures (M, 3, S, S), degraded, and the seed of it."""
    seed = derive_seed(0, person.name, strength)
    generator = torch.Generator().manual_seed(seed)
    return degrade(person.clean, STRENGTHS[strength], generator), seed


def gamma(trial: Trial) -> str:
    """Compares automatic gamma with fixed ones at five strengths of degradation."""
    from pfstorer_core.host import apply_identity

    figures = Figures()
    for person in trial.people:
        adapter = trial.adapter(person)
        for strength in STRENGTHS:
            lq, seed = degraded(person, strength)
            for value in (*GAMMAS, AUTO):
                model = apply_identity(trial.bench.model, adapter, value)
                restored = trial.restore(model, lq, seed=seed)
                measured = {
                    SIMILARITY: identity_similarity(trial.embedding, restored, person.references),
                    PSNR: psnr(restored, person.clean),
                    LEVEL: degradation_level(lq),
                }
                kind = value if isinstance(value, str) else f"{value:g}"
                figures.add(strength, kind, person.name, measured)
    rows = []
    for strength in STRENGTHS:
        for kind in figures.kinds():
            cells = [interval_text(figures.mean(strength, kind, m), m) for m in (SIMILARITY, PSNR)]
            changes = ["-", "-"]
            if kind == AUTO:
                changes = [
                    _change(figures.difference(strength, AUTO, ONE, m)) for m in (SIMILARITY, PSNR)
                ]
            rows.append([strength, kind, *cells, *changes])
    levels = ", ".join(
        f"{strength} {float(figures.values(strength, ONE, LEVEL).mean()):.2f}"
        for strength in STRENGTHS
    )
    people, pictures = figures.values("light", ONE, PSNR).shape
    head = (
        f"{people} people, {pictures} pictures each, {trial.steps} steps, no colour fix. Mean "
        f"level of degradation: {levels}.\n\n"
    )
    names = ["degradation", "gamma", SIMILARITY, PSNR, "similarity against 1", "PSNR against 1"]
    return head + markdown_table(names, rows)


def guard(trial: Trial) -> str:
    """Counts how often the person check warns of the right person and of strangers."""
    strangers = [
        portrait_set(FIRST_STRANGER + k, 1, k, TRAINED) for k in range(len(trial.people[0].clean))
    ]
    rows = []
    for strength in STRENGTHS:
        right, wrong, others = [], [], []
        for k, person in enumerate(trial.people):
            adapter = trial.adapter(person)
            following = trial.people[(k + 1) % len(trial.people)]
            stranger = replace(
                person, name=f"strangers of {person.name}", clean=torch.cat(strangers)
            )
            for shown, checks in ((person, right), (following, wrong), (stranger, others)):
                checks.append(_person_check(trial, adapter, degraded(shown, strength)[0]))
        warned = [
            torch.stack([c.scores < c.limits for c in x]).double() for x in (right, wrong, others)
        ]
        scores = [torch.stack([c.scores for c in x]).double() for x in (right, wrong, others)]
        better = (
            scores[0][:, :, None] > torch.stack([*scores[1:]]).movedim(0, 1).flatten(1)[:, None]
        )
        rows.append(
            [
                strength,
                *(interval_text(clustered_interval(x)) for x in warned),
                f"{float(better.double().mean()):.3f}",
                *(f"{float(x.mean()):+.2f}" for x in scores),
            ]
        )
    people, pictures = len(trial.people), len(trial.people[0].clean)
    head = (
        f"{people} adapters, {pictures} pictures each: of the person (warned: false alarm), of the "
        f"next person and of {pictures} strangers (warned: hit). AUC: how often a picture of the "
        "person scores above one of somebody else.\n\n"
    )
    names = ["degradation", "false alarms", "hits, next person", "hits, strangers", "AUC"]
    return head + markdown_table([*names, "score", "next person", "strangers"], rows)


def _person_check(trial: Trial, adapter: IdentityAdapter, lq: Tensor) -> PersonCheck:
    from pfstorer_core.host import apply_identity
    from pfstorer_core.host.person_check import check_persons

    model = apply_identity(trial.bench.model, adapter)
    (check,) = check_persons(model, trial.bench.vae, lq)
    return check


def _change(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


SECTIONS = {"gamma": gamma, "guard": guard}

if __name__ == "__main__":
    main()
