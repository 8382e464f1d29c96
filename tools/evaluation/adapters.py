"""Adapters for an evaluation: the variants of their training, and files that outlive a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.training.identity import IdentityTrainingConfig

logger = logging.getLogger(__name__)

# (photos, config, name) -> adapter
Train = Callable[[Sequence[Tensor], IdentityTrainingConfig, str], IdentityAdapter]


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a row of the ablation table differs from the full method.

    Args:
        settings: changed fields of the training's configuration.
        steps: factor on the number of training steps.
        photos: number of training photos; None leaves it.
        references: give reference photos at inference as well.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: float = 1.0
    photos: int | None = None
    references: bool = False

    def config(self, full: IdentityTrainingConfig) -> IdentityTrainingConfig:
        """Returns the settings of the full method with this variant's changes."""
        return dataclasses.replace(
            full, **{"steps": max(1, round(full.steps * self.steps)), **self.settings}
        )


FULL = "full"
VARIANTS: dict[str, Variant] = {
    FULL: Variant(),
    "without regularizer": Variant({"regularizer_weight": 0.0}),
    "without learned gamma": Variant({"learned_gamma": False}),
    "without reference features": Variant({"reference_probability": 0.0}),
    "references at inference": Variant(references=True),
    "without identity tokens": Variant({"tokens": 0}),
    # Without tokens the references are all that can tell who it is.
    "references, no tokens": Variant({"tokens": 0}, references=True),
    "1 photo": Variant(photos=1),
    "3 photos": Variant(photos=3),
    "5 photos": Variant(photos=5),
    "8 photos": Variant(photos=8),
    "half the steps": Variant(steps=0.5),
    "twice the steps": Variant(steps=2.0),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one adapter cost.

    Attributes:
        seconds: from the photos to the adapter, preparation included.
        steps: training steps.
        threads: that torch had on the CPU.
    """

    seconds: float
    steps: int
    threads: int


class AdapterCache:
    """A folder of trained adapters; what is there is read, what lacks is trained.

    An adapter's name holds a digest of all it depends on: base, photos and settings. Several
    processes may fill one folder, best with different people.

    Args:
        folder: where adapters lie; beside each a JSON file tells what it cost.
        base: fingerprint of the base restorer.
        train: trains an adapter.
    """

    def __init__(self, folder: Path, base: str, train: Train):
        self.folder, self.base, self.train = folder, base, train

    def path(self, person: str, photos: Sequence[Tensor], config: IdentityTrainingConfig) -> Path:
        """Returns the adapter's file, whether or not it is there."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.base, dataclasses.asdict(config)], sort_keys=True).encode())
        for photo in photos:
            pixels = photo.mul(255).round().byte().contiguous()
            digest.update(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes())
        return self.folder / f"{person}-{digest.hexdigest()[:16]}.safetensors"

    def get(
        self, person: str, photos: Sequence[Tensor], config: IdentityTrainingConfig
    ) -> IdentityAdapter:
        """Returns the adapter of these photos and settings, trained now if there is none."""
        path = self.path(person, photos, config)
        if not path.is_file():
            logger.info("training %s: %d photos, %d steps", path.stem, len(photos), config.steps)
            started = time.perf_counter()
            adapter = self.train(photos, config, person)
            cost = Cost(time.perf_counter() - started, config.steps, torch.get_num_threads())
            logger.info("%s: %.0f s", path.stem, cost.seconds)
            self.folder.mkdir(parents=True, exist_ok=True)
            # The adapter comes last: where it is, all is there.
            path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(cost)))
            adapter.save(path)
        return IdentityAdapter.load(path)  # with the rounding of the file, each time

    def cost(
        self, person: str, photos: Sequence[Tensor], config: IdentityTrainingConfig
    ) -> Cost | None:
        """Returns what an adapter cost; None where no record lies beside it."""
        record = self.path(person, photos, config).with_suffix(".json")
        return Cost(**json.loads(record.read_text())) if record.is_file() else None


def file_digest(*paths: Path | None) -> str:
    """Returns a digest of the contents of files, those that are None left out."""
    digest = hashlib.sha256()
    for path in paths:
        if path is not None:
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
