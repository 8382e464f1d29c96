"""Measures how much of a person identity adapters bring back, on people that no training saw.

    python scripts/evaluate.py                            # the method
    python scripts/evaluate.py --ablations                # what each of its parts is worth
    python scripts/evaluate.py --photos PHOTOS_OF_ANNA PHOTOS_OF_BEN --restorer RESTORER \\
        --checkpoint CHECKPOINT --size 512 --embedding ARCFACE.onnx

Runs in ComfyUI's environment (scripts/setup_host.py makes one). For each person it trains an
adapter on a few photos, degrades held-out ones and restores them by the base alone, with the
adapter, and with the next person's adapter. Writes Markdown tables, a CSV with every picture's
figures, and a contact sheet.

Identity similarity is the mean cosine between the embedding of a picture and those of other clean
pictures of the person that nothing else uses. The share returned is the ratio of means
(with adapter - base) / (clean - base). Intervals are percentile bootstraps that resample people
and then each one's pictures; with few people they come out too narrow (with six, nominal 80% hold
about 70% of the time).

Adapters are kept in OUT/adapters: an interrupted run goes on where it was, and `--only-train` with
`--identities` or `--first` and `--count` lets several processes train different people.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor

sys.path.append(str(REPO))  # after ComfyUI comes to the front, which `main` sees to

from evaluation.adapters import FULL, VARIANTS, AdapterCache, Cost, Variant, file_digest
from evaluation.people import (
    FIRST_IDENTITY,
    Person,
    derive_seed,
    photographed_people,
    procedural_person,
    square,
)
from evaluation.tables import (
    LEVELS,
    SIMILARITY,
    Figures,
    contact_sheet,
    interval_text,
    markdown_table,
    quality_measures,
)

from pfstorer_core.adapter import IdentityAdapter
from pfstorer_core.degradation import PRESETS as DEGRADATIONS
from pfstorer_core.degradation import degrade
from pfstorer_core.errors import PFStorerError
from pfstorer_core.similarity import IdentityEmbedding, identity_similarity, load_embedding
from pfstorer_core.training.identity import PRESETS, IdentityTrainingConfig

BATCH = 16  # pictures restored at once
GIVEN_REFERENCES = 3  # photos given at inference, by the variants that give any
SHEET_LEVELS = ("medium", "extreme")
SHEET_PICTURES = 2  # per person
BASE, WRONG, LQ, CLEAN = "base", "wrong person", "LQ", "clean"


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to restore.

    Args:
        kind: its name in tables.
        variant: key of VARIANTS; None restores without an adapter.
        gamma: strength of the adapter.
        wrong: take the next person's adapter.
    """

    kind: str
    variant: str | None = FULL
    gamma: float = 1.0
    wrong: bool = False


METHOD = (
    Case(BASE, None),
    Case("gamma 0.5", gamma=0.5),
    Case("gamma 1"),
    Case("gamma 1.5", gamma=1.5),
    Case(WRONG, wrong=True),
)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=REPO / "output" / "identity", help="folder of the results")
    add("--restorer", type=Path, help="restorer file; the mini restorer by default")
    add("--checkpoint", type=Path, help="Stable Diffusion checkpoint, unless bundled in restorer")
    add("--embedding", type=Path, help="ArcFace .onnx or own .safetensors; the mini one by default")
    people = parser.add_argument_group("people")
    add = people.add_argument
    add("--identities", type=int, nargs="+", help="numbers of procedural people")
    add("--first", type=int, default=FIRST_IDENTITY, help="first of --count people, otherwise")
    add("--count", type=int, default=6)
    add("--photos", type=Path, nargs="+", help="folders of clean photos instead, one per person")
    add("--train-photos", type=int, default=8, help="photos that an adapter is trained on")
    add("--pictures", type=int, default=16, help="held-out pictures to restore per person")
    add("--references", type=int, default=5, help="clean pictures that similarity is measured to")
    add("--size", type=int, default=128, help="side of the held-out pictures in pixels")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--preset", choices=list(PRESETS), default="standard")
    add("--training-steps", type=int, help="instead of the preset's")
    add("--only-train", action="store_true", help="train the adapters that lack, then stop")
    add("--ablations", action="store_true", help="measure all variants of the training")
    add("--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help="only these variants")
    sampling = parser.add_argument_group("sampling")
    add = sampling.add_argument
    add("--steps", type=int, default=8)
    add("--sampler", default="euler")
    add("--scheduler", default="normal")
    add("--color-fix", default="none")
    add("--start", default="LQ image")
    add("--seed", type=int, default=0, help="of views, degradations, noise and training")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui()
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)  # hundreds of short samplings
    try:
        run(options)
    except PFStorerError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Trains what lacks, measures, and writes the results."""
    ablation = options.ablations or bool(options.variants)
    chosen = dict.fromkeys([FULL, *(options.variants or VARIANTS)]) if ablation else [FULL]
    # As many photos as the full method has are the full method.
    variants = {
        name: VARIANTS[name] for name in chosen if VARIANTS[name].photos != options.train_photos
    }
    # now: a file that is missing shall not be found out after hours of training
    embedding = None if options.only_train else load_embedding(options.embedding)
    bench = Bench(options)
    people = gather_people(options, variants)
    for person in people:
        for variant in variants.values():
            bench.adapter(person, variant)
    print(bench.training_summary(people))
    if embedding is None:
        return

    cases: Sequence[Case]
    if ablation:
        cases = [Case(BASE, None), *(Case(name, name) for name in variants)]
    else:
        cases = METHOD if len(people) > 1 else [case for case in METHOD if not case.wrong]
    figures, shown = measure(people, cases, bench, embedding, options)
    costs = {name: bench.costs(people, variant) for name, variant in variants.items()}
    report = "\n".join(
        [
            header(options, people),
            bench.training_summary(people),
            ablation_table(figures, costs) if ablation else method_tables(figures),
        ]
    )
    name = "ablations" if ablation else "method"
    (options.out / f"{name}.md").write_text(report)
    figures.write_csv(options.out / f"{name}.csv")
    if not ablation:
        columns = [person.name for person in people for _ in range(SHEET_PICTURES)]
        rows = [(label, torch.cat(pictures)) for label, pictures in shown.items()]
        contact_sheet(rows, columns).save(options.out / "method.png")
    print(report)


def gather_people(options: argparse.Namespace, variants: dict[str, Variant]) -> list[Person]:
    """Returns the people to measure on, with the photos of the greediest variant."""
    counts = {
        "photos": max(options.train_photos, *(v.photos or 0 for v in variants.values()), 0),
        "references": options.references,
        "pictures": options.pictures,
        "size": options.size,
        "seed": options.seed,
    }
    if options.photos:
        return photographed_people(options.photos, **counts)
    numbers = options.identities or range(options.first, options.first + options.count)
    return [procedural_person(number, **counts) for number in numbers]


class Bench:
    """The base restorer and the adapters trained on it.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace):
        from pfstorer_core.host.loading import MINI_RESTORER_PATH, load_base_restorer

        self.options = options
        files = [options.restorer or MINI_RESTORER_PATH, options.checkpoint]
        self.model, _, self.vae = load_base_restorer(*files)
        changes: dict[str, Any] = {"seed": options.seed, "preview_every": 0}
        if options.training_steps:
            changes["steps"] = options.training_steps
        self.config = dataclasses.replace(PRESETS[options.preset], **changes)
        self.cache = AdapterCache(options.out / "adapters", file_digest(*files), self._train)

    def adapter(self, person: Person, variant: Variant) -> IdentityAdapter:
        """Returns a person's adapter, trained now if it is not there."""
        photos = self._photos(person, variant)
        return self.cache.get(person.name, photos, variant.config(self.config))

    def personalized(self, case: Case, person: Person, following: Person) -> Any:
        """Returns the MODEL that a case restores a person's pictures with."""
        from pfstorer_core.host import apply_identity

        if case.variant is None:
            return self.model
        variant = VARIANTS[case.variant]
        owner = following if case.wrong else person
        references = None
        if variant.references:
            photos = self._photos(owner, variant)[:GIVEN_REFERENCES]
            squares = [square(photo[0].movedim(-1, 0), self.options.size) for photo in photos]
            references = self.vae.encode(torch.stack(squares).movedim(1, -1))  # (R, C, h, w)
        adapter = self.adapter(owner, variant)
        return apply_identity(self.model, adapter, case.gamma, references=references)

    def restore(self, model: Any, lq: Tensor, seed: int) -> Tensor:
        """Restores pictures (B, 3, H, W) in [0, 1]."""
        from pfstorer_core.host import restore

        options = self.options
        restored = [
            restore(
                model,
                self.vae,
                part.movedim(1, -1),  # (b, H, W, 3)
                steps=options.steps,
                sampler_name=options.sampler,
                scheduler=options.scheduler,
                color_fix=options.color_fix,
                start=options.start,
                seed=seed,
            )
            for part in lq.split(BATCH)
        ]
        return torch.cat(restored).movedim(-1, 1).cpu()  # (B, 3, H, W)

    def costs(self, people: Sequence[Person], variant: Variant) -> list[Cost]:
        """Returns what the people's adapters cost, those without a record left out."""
        config = variant.config(self.config)
        found = [self.cache.cost(p.name, self._photos(p, variant), config) for p in people]
        return [cost for cost in found if cost is not None]

    def training_summary(self, people: Sequence[Person]) -> str:
        """Returns a sentence on what the full method's adapters cost."""
        costs = self.costs(people, VARIANTS[FULL])
        if not costs:
            return "There is no record of what the adapters cost.\n"
        seconds = sorted(cost.seconds for cost in costs)
        mean = sum(seconds) / len(costs)
        pace = sum(cost.steps for cost in costs) / sum(seconds)
        threads = " or ".join(str(n) for n in sorted({cost.threads for cost in costs}))
        return (
            f"Preset {self.options.preset}, {self.config.steps} steps: {mean:.0f} s per adapter "
            f"({seconds[0]:.0f} to {seconds[-1]:.0f} for {len(costs)} people), "
            f"{pace:.1f} steps a second with all preparation, {threads} CPU threads.\n"
        )

    def _photos(self, person: Person, variant: Variant) -> list[Tensor]:
        return person.photos[: variant.photos or self.options.train_photos]

    def _train(
        self, photos: Sequence[Tensor], config: IdentityTrainingConfig, name: str
    ) -> IdentityAdapter:
        from pfstorer_core.host import train_identity

        return train_identity(self.model, self.vae, photos, config, name=name)


def measure(
    people: Sequence[Person],
    cases: Sequence[Case],
    bench: Bench,
    embedding: IdentityEmbedding,
    options: argparse.Namespace,
) -> tuple[Figures, dict[str, list[Tensor]]]:
    """Degrades, restores and measures everybody's held-out pictures.

    Returns:
        The figures, and the first pictures of everybody by the label of their row in the sheet.
    """
    measures = quality_measures()
    figures = Figures()
    shown: dict[str, list[Tensor]] = {}
    for k, person in enumerate(people):
        following = people[(k + 1) % len(people)]
        models = {case.kind: bench.personalized(case, person, following) for case in cases}
        for level in LEVELS:
            seed = derive_seed(options.seed, person.name, level)
            generator = torch.Generator().manual_seed(seed)
            lq = degrade(person.clean, DEGRADATIONS[level], generator)
            pictures = {LQ: lq}
            pictures |= {kind: bench.restore(m, lq, seed) for kind, m in models.items()}
            pictures[CLEAN] = person.clean
            for kind, images in pictures.items():
                values = {SIMILARITY: identity_similarity(embedding, images, person.references)}
                if kind != CLEAN:  # equal to itself
                    values |= {name: m(images, person.clean) for name, m in measures.items()}
                figures.add(level, kind, person.name, values)
                if level in SHEET_LEVELS and kind in (LQ, BASE, "gamma 1", WRONG, CLEAN):
                    shown.setdefault(f"{level}: {kind}", []).append(images[:SHEET_PICTURES])
        logging.info("%s measured", person.name)
    return figures, shown


def header(options: argparse.Namespace, people: Sequence[Person]) -> str:
    """Returns what the tables are about."""
    pictures = len(people[0].clean)
    return (
        f"{len(people)} people, {options.train_photos} training photos and {pictures} held-out "
        f"pictures of {options.size} px each, similarity to {options.references} other clean "
        f"pictures; {options.steps} steps of {options.sampler}/{options.scheduler}, start from "
        f"{options.start}, colour fix {options.color_fix}, seed {options.seed}. Mean [95% "
        "bootstrap interval over people and their pictures].\n"
    )


def method_tables(figures: Figures) -> str:
    """Returns the tables of means and of what the adapters change."""
    kinds = figures.kinds()
    measures = [SIMILARITY, *(name for name in quality_measures())]
    means = [
        [level, kind, *(interval_text(figures.mean(level, kind, m), m) for m in measures)]
        for level in LEVELS
        for kind in kinds
    ]
    changes = []
    for level in LEVELS:
        for kind in (kind for kind in kinds if kind not in (LQ, BASE, CLEAN)):
            better = figures.values(level, kind, SIMILARITY) > figures.values(
                level, BASE, SIMILARITY
            )
            difference = figures.difference(level, kind, BASE, SIMILARITY)
            changes.append(
                [
                    level,
                    kind,
                    interval_text(difference, sign=True),
                    f"{int(better.sum())} of {better.numel()}",
                    interval_text(figures.share_returned(level, kind)),
                ]
            )
    columns = ["similarity against the base", "pictures better", "share of the lost returned"]
    return "\n".join(
        [
            markdown_table(["degradation", "picture", *measures], means),
            markdown_table(["degradation", "picture", *columns], changes),
        ]
    )


def ablation_table(figures: Figures, costs: Mapping[str, Sequence[Cost]]) -> str:
    """Returns the table of variants, each with what its adapters cost, against the full method."""
    measures = [SIMILARITY, "PSNR (dB)", "HaarPSI"]
    rows = []
    for level in LEVELS:
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


if __name__ == "__main__":
    main()
