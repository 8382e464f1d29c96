"""Trains and measures the mini embedding, which tells procedural portraits apart.

    python scripts/train_embedding.py train      # writes pfstorer_core/assets/mini_embedding...
    python scripts/train_embedding.py evaluate   # on identities that no training saw

Runs in ComfyUI's environment (scripts/setup_host.py makes one). On few CPU cores,
OMP_NUM_THREADS=1 is faster as soon as anything else runs beside it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from setup_host import REPO
from torch import Tensor

sys.path.append(str(REPO))  # this needs no ComfyUI

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.painting import draw
from pfstorer_core.drawn.portraits import render, sample_identities, sample_views
from pfstorer_core.measures.embedding import EmbeddingConfig, EmbeddingNetwork
from pfstorer_core.measures.similarity import (
    MINI_EMBEDDING_PATH,
    NetworkEmbedding,
    load_embedding,
    save_embedding,
)
from pfstorer_core.training.autoencoder import UNSEEN
from pfstorer_core.training.embedding import embedding_objective, portrait_album
from pfstorer_core.training.loop import LoopConfig, fit

CONFIG = EmbeddingConfig()
GALLERY = 100  # persons to find one among
BATCH = 64


def train(options: argparse.Namespace) -> None:
    album_path = options.runs / f"album-{options.persons}-{options.views}-{options.seed}.pt"
    if not album_path.exists():
        generator = torch.Generator().manual_seed(options.seed)
        fast_draw = torch.compile(draw, dynamic=False)
        album = portrait_album(options.persons, options.views, generator, draw=fast_draw)
        torch.save(album, album_path)
    album = torch.load(album_path, mmap=True, weights_only=True)
    torch.manual_seed(options.seed)
    network = EmbeddingNetwork(CONFIG).to(memory_format=torch.channels_last)
    clean, probes = unseen_pairs(GALLERY)

    def similarities(trained: torch.nn.Module) -> Tensor:
        trained.eval()
        cosine = trained(probes) @ trained(clean).T  # (GALLERY, GALLERY)
        trained.train()
        found = (cosine.argmax(1) == torch.arange(GALLERY)).float().mean()
        logging.info("rank-1 of %d unseen persons: %.3f", GALLERY, found)
        return cosine.clamp(0, 1).expand(3, -1, -1)  # a bright diagonal on black is perfect

    config = LoopConfig(
        steps=options.steps,
        learning_rate=3e-3,
        warmup_steps=options.steps // 8,
        ema_decay=0.0,  # averaged weights would not fit the batch norms' statistics
        mixed_precision="bf16",
        seed=options.seed,
        sample_every=100,
        save_every=0,  # the margin's growth is not kept, so a stopped run begins anew
        log_every=25,
    )
    objective = embedding_objective(album, BATCH, options.steps)
    (options.runs / "state").unlink(missing_ok=True)
    fit(network, objective, config, options.runs, sample=similarities)
    save_embedding(NetworkEmbedding(network).network.half(), options.out)
    logging.info("%s: %.2f MB", options.out.name, options.out.stat().st_size / 1e6)


def unseen_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Two views of each of `count` persons that no training saw: (count, 3, size, size) each."""
    people = sample_identities(range(UNSEEN, UNSEEN + count))
    generator = torch.Generator().manual_seed(0)
    first, second = (render(people, sample_views(count, generator), CONFIG.size) for _ in range(2))
    return first, second


def evaluate(options: argparse.Namespace) -> None:
    embedding = load_embedding(options.file)
    generator = torch.Generator().manual_seed(options.seed)
    clean, probes = unseen_pairs(options.unseen)
    gallery = embedding.embed(clean)  # (N, D)
    print(
        f"{options.unseen} persons that no training saw: a clean view of each, and another view "
        "at four levels.\n\n"
        f"| second view | same person | others | verification | rank-1 of {GALLERY} |\n"
        "|---|---|---|---|---|"
    )
    for level in ("clean", "light", "medium", "extreme"):
        second = probes if level == "clean" else degrade(probes, PRESETS[level], generator)
        cosine = embedding.embed(second) @ gallery.T  # (N, N)
        same, others = cosine.diagonal(), cosine.roll(1, dims=1).diagonal()
        groups = [  # each person is looked for among GALLERY
            cosine[k : k + GALLERY, k : k + GALLERY] for k in range(0, len(cosine), GALLERY)
        ]
        found = torch.cat([g.argmax(1) == torch.arange(len(g)) for g in groups]).float().mean()
        print(
            f"| {level} | {same.mean():.3f} ± {same.std():.3f} | {others.mean():.3f} ± "
            f"{others.std():.3f} | {verification(same, others):.1%} | {found:.1%} |"
        )


def verification(same: Tensor, others: Tensor) -> float:
    """Share of pairs told right; each half of the persons is judged by the other's threshold.

    Args:
        same: (N,) similarities of pairs of one person.
        others: (N,) of pairs of two.
    """
    half = len(same) // 2
    right = 0.0
    for judged, fitted in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        thresholds = torch.cat([same[fitted], others[fitted]])  # (2 M,)
        accuracy = (same[fitted, None] >= thresholds).float().mean(0)
        accuracy += (others[fitted, None] < thresholds).float().mean(0)
        best = thresholds[accuracy.argmax()]
        right += float((same[judged] >= best).sum() + (others[judged] < best).sum())
    return right / (2 * len(same))


STAGES = {"train": train, "evaluate": evaluate}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--runs",
        type=Path,
        default=REPO / "runs" / "embedding",
        help="folder of the rendered album and the log",
    )
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps")
    parser.add_argument("--persons", type=int, default=1500, help="persons to train on")
    parser.add_argument("--views", type=int, default=16, help="pictures of each")
    parser.add_argument("--out", type=Path, default=MINI_EMBEDDING_PATH, help="file to write")
    parser.add_argument("--file", type=Path, help="embedding to evaluate; the shipped one if none")
    parser.add_argument("--unseen", type=int, default=1000, help="persons to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.runs.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
