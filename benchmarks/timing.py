"""Clocks, and the mini restorer ready to be timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def synchronise() -> None:
    """Waits for what the GPU still has to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Returns a function that runs `run` and returns the seconds it took."""

    def clocked() -> float:
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        return time.perf_counter() - start

    return clocked


def in_turns(
    runs: Sequence[Callable[[], float]], repeats: int, warm_up: bool = True
) -> list[float]:
    """Returns each run's median seconds; all run once in every turn.

    Args:
        runs: each returns the seconds it took.
        repeats: turns that count.
        warm_up: whether a turn that does not count comes first.
    """
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + warm_up):
        for seconds, run in zip(times, runs, strict=True):
            taken = run()
            if turn >= warm_up:
                seconds.append(taken)
    return [statistics.median(seconds) for seconds in times]


class SamplingClock:
    """`SAMPLER_SAMPLE` wrapper that adds up the seconds of samplings: all steps, no VAE."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs a sampling."""
        synchronise()
        start = time.perf_counter()
        samples = executor(*args, **kwargs)
        synchronise()
        self.seconds += time.perf_counter() - start
        return samples


@dataclass(frozen=True)
class Mini:
    """The bundled mini restorer.

    Args:
        model, vae: ComfyUI's.
        tile: side in pixels of the tiles that Tiled Restore takes by itself.
        cell: pixels per latent pixel.
    """

    model: Any
    vae: Any
    tile: int
    cell: int

    def restore(self, image: Tensor, model: Any = None, **settings: Any) -> Tensor:
        """Restores in one pass, without gradients, as ComfyUI runs its nodes.

        Args:
            image: (B, H, W, 3) in [0, 1].
            model: with identities; None is the restorer alone.
            settings: of `host.restore`.
        """
        from pfstorer_core import host

        model = self.model if model is None else model
        with torch.inference_mode():
            return host.restore(model, self.vae, image, upscaling="one pass", **settings)

    def sampling(self, image: Tensor, model: Any = None, **settings: Any) -> Callable[[], float]:
        """Returns a function that restores and returns the seconds of the sampling alone.

        Args:
            image, model, settings: as `restore` takes them.
        """
        from comfy.patcher_extension import WrappersMP

        clock = SamplingClock()
        clocked = (self.model if model is None else model).clone()
        clocked.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "pfstorer_benchmark", clock)

        def run() -> float:
            clock.seconds = 0.0
            self.restore(image, clocked, color_fix="none", **settings)
            return clock.seconds

        return run


def load_mini() -> Mini:
    """Loads the bundled mini restorer; ComfyUI must be importable."""
    import comfy.utils

    from pfstorer_core import host
    from pfstorer_core.host.base import base_of
    from pfstorer_core.host.load.folders import MINI_RESTORER_PATH

    comfy.utils.set_progress_bar_enabled(False)
    model, _, vae = host.load_base_restorer(MINI_RESTORER_PATH)
    return Mini(model, vae, base_of(model).trained_size, base_of(model).cell)


def random_picture(height: int, width: int, count: int = 1) -> Tensor:
    """Returns noise (count, height, width, 3) in [0, 1]: what a picture shows costs nothing."""
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def randomise(*modules: torch.nn.Module) -> None:
    """Fills all weights: zeros and uninitialised memory may compute at another speed."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.normal_(std=0.02)


def fitting_side(side: int, tile: int, overlap: float) -> int:
    """Returns the side nearest to `side` that tiles fill without moving the last one back.

    Args:
        side, tile: in pixels.
        overlap: share of the tile.
    """
    shared = int(tile * overlap)
    return max(1, round((side - shared) / (tile - shared))) * (tile - shared) + shared
