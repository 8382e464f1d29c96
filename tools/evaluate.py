"""Measures how much of a person identity adapters bring back, on people that no training saw.

    python tools/evaluate.py                            # the method, on drawn people
    python tools/evaluate.py --ablations                # what each of its parts is worth
    python tools/evaluate.py --people FOLDER --recognition MobileFaceNet.tflite dlib
    python tools/evaluate.py --people FOLDER --recognition ARCFACE.onnx --size 512 \\
        --restorer RESTORER --checkpoint CHECKPOINT
    python tools/evaluate.py --pairs FOLDER --recognition MobileFaceNet.tflite

Runs in ComfyUI's environment (scripts/setup_host.py makes one). For each person it trains an
adapter on a few photos, degrades held-out ones and restores them by the base alone, with the
adapter, and with the next person's adapter. Writes Markdown tables, a CSV with every picture's
figures, and a contact sheet.

Identity similarity is the mean cosine between the embedding of a picture and those of other clean
pictures of the person: with --people all the person's other held-out photos, so none that the
adapter was trained on; with --pairs the given references. Similarity to the truth is the cosine to
the clean picture of the same view. High to the references and low to the truth would mean that a
photo was copied. The share returned is the ratio of means (with adapter - base) / (clean - base).
Landmarks are the mean distance in px of 68 points to those of the clean picture. Recognition
networks see the face at its place in the clean picture. Intervals are percentile bootstraps that
resample people and then each one's pictures; with few people they come out too narrow (with six,
nominal 80% hold about 70% of the time).

--people takes a folder with a folder of photos per person. --pairs takes pictures that are degraded
already, as FOLDER/lq/PERSON/NAME.png, FOLDER/truth/PERSON/NAME.png and FOLDER/references/PERSON/*:
FFHQ-Ref's moderate and severe sets, for example, whose lists of identities must be sorted into such
folders first, and whose pictures of 512 px need --size 512 and a Stable Diffusion restorer (at 128
px, the bundled restorer's size, they are scaled down).

Adapters are kept in OUT/adapters: an interrupted run goes on where it was, and `--only-train` with
`--only`, `--identities` or `--first` and `--count` lets several processes train different people.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import repository  # noqa: F401
import torch
from evaluation.adapters import FULL, VARIANTS
from evaluation.bench import Bench, Case, Judge, gather_people
from evaluation.face_measures import FaceMeasures, described
from evaluation.people import (
    FIRST_IDENTITY,
    Person,
    derive_seed,
)
from evaluation.recognition import Recognition, load_recognition
from evaluation.reports import BASE, CLEAN, LQ, ablation_table, method_tables
from evaluation.sampling import (
    add_sampling_options,
    sampling_text,
)
from evaluation.tables import LEVELS, Figures, contact_sheet, quality_measures
from in_process import use_comfyui
from setup_host import REPO
from torch import Tensor

from pfstorer_core.degradation.presets import PRESETS as DEGRADATIONS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.identity import PRESETS

DRAWN_PHOTOS, REAL_PHOTOS = 8, 6  # that an adapter is trained on
SHEET_PICTURES = 2  # per person
WRONG, GIVEN = "wrong person", "given"


def method_cases(gammas: Sequence[float], people: int) -> list[Case]:
    """Returns the base, the adapter at each strength, and another person's if there is one."""
    cases = [Case(BASE, None), *(Case(f"gamma {gamma:g}", gamma=gamma) for gamma in gammas)]
    return [*cases, Case(WRONG, wrong=True)] if people > 1 else cases


def extending_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of another tool's own options; `parse_options` reads the others."""
    return argparse.ArgumentParser(
        description=description,
        epilog="All other options are those of tools/evaluate.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
    add(
        "--recognition",
        "--embedding",
        nargs="+",
        metavar="NETWORK",
        help="what identities are compared with, the first decides: MobileFaceNet's .tflite, an "
        "ArcFace .onnx, dlib, an own .safetensors; the mini one of drawn people by default",
    )
    people = parser.add_argument_group("people")
    add = people.add_argument
    add("--identities", type=int, nargs="+", help="numbers of procedural people")
    add("--first", type=int, default=FIRST_IDENTITY, help="first of --count people, otherwise")
    add("--count", type=int, default=6)
    add("--people", type=Path, help="folder with a folder of clean photos per person instead")
    add("--pairs", type=Path, help="folder of given LQ pictures, truth and references instead")
    add("--only", nargs="+", metavar="PERSON", help="of --people or --pairs, with --only-train")
    add(
        "--train-photos",
        type=int,
        help=f"photos that an adapter is trained on; {DRAWN_PHOTOS}, or {REAL_PHOTOS} of --people",
    )
    add("--pictures", type=int, default=16, help="held-out pictures to restore per person, at most")
    add("--references", type=int, default=5, help="clean pictures of a procedural person beside")
    add("--size", type=int, default=128, help="side of the held-out pictures in pixels")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--preset", choices=list(PRESETS), default="standard")
    add("--training-steps", type=int, help="instead of the preset's")
    add("--only-train", action="store_true", help="train the adapters that lack, then stop")
    add("--ablations", action="store_true", help="measure all variants of the training")
    add("--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help="only these variants")
    add_sampling_options(parser, color_fix="none")
    parser.add_argument("--steps", type=int, default=8, help="of the sampling")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument(
        "--seed", type=int, default=0, help="of views, degradations, noise and training"
    )
    options = parser.parse_args(arguments)
    if options.train_photos is None:
        real = options.people or options.pairs
        options.train_photos = REAL_PHOTOS if real else DRAWN_PHOTOS
    if (options.people or options.pairs) and not (options.recognition or options.only_train):
        parser.error("photos of real people need --recognition")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(progress_bars=False)
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
    # now: a file or a face that is missing shall not be found out after hours of training
    networks = [load_recognition(name) for name in options.recognition or [None]]
    judge = None if options.only_train else Judge(networks)
    bench = Bench(options)
    people = gather_people(options, variants)
    measured = [] if judge is None else [judge.measures(person) for person in people]
    for person in people:
        for variant in variants.values():
            bench.adapter(person, variant)
    print(bench.training_summary(people))
    if judge is None:
        return

    cases: Sequence[Case]
    if ablation:
        cases = [Case(BASE, None), *(Case(name, name) for name in variants)]
    else:
        cases = method_cases(options.gammas, len(people))
    figures, shown = measure(people, measured, cases, bench, options)
    costs = {name: bench.costs(people, variant) for name, variant in variants.items()}
    report = "\n".join(
        [
            header(options, people, networks),
            bench.training_summary(people),
            ablation_table(figures, costs) if ablation else method_tables(figures),
        ]
    )
    name = "ablations" if ablation else "method"
    (options.out / f"{name}.md").write_text(report)
    figures.write_csv(options.out / f"{name}.csv")
    if not ablation:
        columns = [p.name for p in people for _ in p.clean[:SHEET_PICTURES]]
        rows = [(label, torch.cat(pictures)) for label, pictures in shown.items()]
        contact_sheet(rows, columns).save(options.out / "method.png")
    print(report)


def degraded(person: Person, seed: int) -> Iterator[tuple[str, Tensor, int]]:
    """Yields a level's name, a person's LQ pictures (M, 3, S, S) of it, and a seed."""
    if person.lq is not None:
        yield GIVEN, person.lq, derive_seed(seed, person.name, GIVEN)
        return
    for level in LEVELS:
        own = derive_seed(seed, person.name, level)
        generator = torch.Generator().manual_seed(own)
        yield level, degrade(person.clean, DEGRADATIONS[level], generator), own


def measure(
    people: Sequence[Person],
    measured: Sequence[FaceMeasures],
    cases: Sequence[Case],
    bench: Bench,
    options: argparse.Namespace,
) -> tuple[Figures, dict[str, list[Tensor]]]:
    """Degrades, restores and measures everybody's held-out pictures.

    Returns:
        The figures, and the first pictures of everybody by the label of their row in the sheet.
    """
    measures = quality_measures()
    figures = Figures()
    shown: dict[str, list[Tensor]] = {}
    for k, (person, identity) in enumerate(zip(people, measured, strict=True)):
        following = people[(k + 1) % len(people)]
        models = {case.kind: bench.personalized(case, person, following) for case in cases}
        for level, lq, seed in degraded(person, options.seed):
            pictures = {LQ: lq}
            pictures |= {kind: bench.restore(m, lq, seed) for kind, m in models.items()}
            pictures[CLEAN] = person.clean
            for kind, images in pictures.items():
                values = identity(images)
                if kind != CLEAN:  # equal to itself
                    values |= {name: m(images, person.clean) for name, m in measures.items()}
                figures.add(level, kind, person.name, values)
                if level != "light" and kind in (LQ, BASE, "gamma 1", WRONG, CLEAN):
                    shown.setdefault(f"{level}: {kind}", []).append(images[:SHEET_PICTURES])
        logging.info("%s measured", person.name)
    return figures, shown


def header(
    options: argparse.Namespace, people: Sequence[Person], networks: Sequence[Recognition]
) -> str:
    """Returns what the tables are about."""
    if options.pairs:
        photos = f"up to {options.train_photos} given references of each, which are trained on"
    elif options.people:
        photos = "the person's other held-out photos"
    else:
        photos = f"{options.references} other clean pictures"
    pictures = sum(len(person.clean) for person in people)
    return (
        f"{len(people)} people, {options.train_photos} training photos each at most, {pictures} "
        f"other pictures of {options.size} px. Identity similarity: mean cosine to {photos}, by "
        f"{described(networks)}. {sampling_text(options, str(options.steps))}. Mean [95% bootstrap "
        "interval over people and their pictures].\n"
    )


if __name__ == "__main__":
    main()
