"""A small restorer with its MODEL, photos and trainings of a few steps, for faults in this process.

ComfyUI must be importable (`in_process.use_comfyui`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.host.feedback import TrainingProgress
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.training.identity import IdentityTrainingConfig

from .originals import write_original

TRAINING = IdentityTrainingConfig(
    steps=4, batch=2, views_per_photo=2, size=32, preview_every=2, mixed_precision="no"
)
PERSON = 1_000_001


class Stopped(BaseException):
    """What ends a run from outside, as ComfyUI's interruption does: no `Exception`."""


def load_small(folder: Path) -> tuple[Any, Any, Any]:
    """Returns MODEL, CLIP and VAE of a small restorer."""
    path = folder / "small.safetensors"
    write_original("bundled restorer", path)
    return host.load_base_restorer(path)


def photos() -> list[Tensor]:
    """Returns three photos of one person as IMAGEs."""
    return [portrait_set(PERSON, 3, seed=0, size=96).movedim(1, -1)]


def train(
    loaded: tuple[Any, Any, Any],
    on_progress: Callable[[TrainingProgress], None] | None = None,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> IdentityAdapter:
    """Trains an adapter in four steps."""
    chosen = dataclasses.replace(TRAINING, **(config or {}))
    return host.train_identity(
        loaded[0], loaded[2], photos(), chosen, on_progress=on_progress, **settings
    )


def at_step(step: int, act: Callable[[], None]) -> Callable[[TrainingProgress], None]:
    """Returns what does something once, after a step of a training."""

    def report(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done == step and progress.sheet is None:
            act()

    return report


def stop() -> None:
    """Ends a run from outside."""
    raise Stopped


def same(a: IdentityAdapter, b: IdentityAdapter) -> bool:
    """Whether two adapters have the same weights, bit for bit."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def restored(loaded: tuple[Any, Any, Any], vae: Any = None, **settings: Any) -> Tensor:
    """Returns a restored picture (1, 64, 64, 3)."""
    picture = portrait_set(PERSON, 1, seed=9, size=64).movedim(1, -1)
    return host.restore(loaded[0], vae or loaded[2], picture, steps=2, **settings)


@contextmanager
def hooked(hook: Callable[..., None]) -> Iterator[None]:
    """Calls a hook before the forward of every module of PyTorch."""
    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
