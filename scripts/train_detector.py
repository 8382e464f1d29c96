"""Trains the head detector, which finds people's heads in pictures.

    python scripts/train_detector.py scenes [--photos FOLDER... --labels FILE --empty FOLDER]
    python scripts/train_detector.py train    # writes pfstorer_core/assets/head_detector...

The first makes a file of scenes, of drawn people alone if no photos are given. Run it with several
seeds, at once if there are cores for it: the second takes all files in the folder of the run.
--labels is what tools/label_heads.py wrote of the photos; --empty are photos without anybody. Runs
in ComfyUI's environment (scripts/setup_host.py makes one).
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from setup_host import REPO

sys.path.append(str(REPO))  # this needs no ComfyUI

from pfstorer_core.people.detector import HEAD_DETECTOR_PATH, save_head_detector
from pfstorer_core.people.network import HeadNetwork, HeadNetworkConfig
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.training.head_pasting import Person, surroundings
from pfstorer_core.training.head_scenes import FIRST_IDENTITY, Scenes, Sources, make_scenes
from pfstorer_core.training.head_shapes import read_shapes
from pfstorer_core.training.heads import Statistics, head_objective
from pfstorer_core.training.loop import LoopConfig, fit
from pfstorer_core.weights.whole_files import write_whole

CHUNK = 500  # scenes of a file


def scenes(options: argparse.Namespace) -> None:
    """Makes files of scenes."""
    generator = torch.Generator().manual_seed(options.seed)
    sources = gather(options, generator)
    for done in range(0, options.count, CHUNK):
        made = make_scenes(min(CHUNK, options.count - done), sources, generator)
        path = options.runs / f"scenes-{options.seed}-{done:06}.pt"
        write_whole(path, path.with_suffix(".part"), functools.partial(torch.save, made._asdict()))
        logging.info("%d of %d scenes", done + len(made.kinds), options.count)


def gather(options: argparse.Namespace, generator: torch.Generator) -> Sources:
    """Reads the photos and draws the drawn people."""
    people = []
    if options.photos:
        shapes = read_shapes(options.labels)
        for photo in list_photos(options.photos):
            shape = shapes.get(f"{photo.folder}/{photo.name}")
            if shape is not None:
                people.append(Person.of_photo(photo, shape))
    empty = [part for person in people for part in surroundings(person)]
    if options.empty:
        photos = [photo.load().mul(255).byte() for photo in list_photos(options.empty)]
        empty += photos * max(1, len(empty) // len(photos))  # half of the views are theirs
    numbers = torch.randint(100_000, (options.drawn,), generator=generator) + FIRST_IDENTITY
    drawn = [Person.drawn(number, generator) for number in numbers.tolist()]
    logging.info("%d photos of heads, %d parts without any", len(people), len(empty))
    return Sources(drawn, people, empty)


def train(options: argparse.Namespace) -> None:
    """Trains on all scenes of the run's folder."""
    files = sorted(options.runs.glob("scenes-*.pt"))
    loaded = [Scenes(**torch.load(path, weights_only=True)) for path in files]
    pool = Scenes(*(torch.cat(parts) for parts in zip(*loaded, strict=True)))
    torch.manual_seed(options.seed)
    network = HeadNetwork(HeadNetworkConfig()).to(memory_format=torch.channels_last)
    logging.info("%d scenes", len(pool.kinds))
    config = LoopConfig(
        steps=options.steps,
        learning_rate=3e-3,
        warmup_steps=options.steps // 10,
        max_grad_norm=5.0,
        ema_decay=0.0,  # averaged weights would not fit the batch norms' statistics
        mixed_precision=options.precision,
        seed=options.seed,
        sample_every=0,
        save_every=200,
        log_every=25,
    )
    objective = head_objective(pool, options.batch)
    kept = {"statistics": Statistics(network)}
    fit(network, objective, config, options.runs, max_seconds=options.seconds, kept=kept)
    save_head_detector(network, options.out)
    logging.info("%s: %.2f MB", options.out.name, options.out.stat().st_size / 1e6)


STAGES = {"scenes": scenes, "train": train}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--runs", type=Path, default=REPO / "runs" / "detector", help="folder of scenes and state"
    )
    parser.add_argument("--photos", type=Path, nargs="*", default=(), help="one head in each")
    parser.add_argument("--labels", type=Path, help="where the heads are")
    parser.add_argument("--empty", type=Path, nargs="*", default=(), help="photos without anybody")
    parser.add_argument("--drawn", type=int, default=400, help="drawn people")
    parser.add_argument("--count", type=int, default=6000, help="scenes of this file")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=64, help="scenes per step")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--seconds", type=float, help="stop and save after so long")
    parser.add_argument("--out", type=Path, default=HEAD_DETECTOR_PATH, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.photos and not options.labels:
        parser.error("--photos need --labels; tools/label_heads.py writes them")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.runs.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
