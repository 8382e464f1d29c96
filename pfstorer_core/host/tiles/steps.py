"""Runs each step of a sampling tile by tile, so that pictures of any size fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...errors import PFStorerError
from ...tiling.grid import TileBlend
from ..conditions import Conds, has_areas, with_options
from ..memory import retry_smaller
from ..patch.lq import LQ_COND, MEMORY, STEP, FeatureMemory
from ..patch.masks import touched_identities
from .cropping import Unit, can_be_cut, crop_conds
from .layout import TileLayout
from .step_caches import StepCaches

TILES_KEY = "pfstorer_tiles"


class TiledSteps:
    """`CALC_COND_BATCH` wrapper that denoises tile by tile and takes the Gaussian-weighted mean.

    Every tile gets its own part of the LQ latent, of masks, areas and ControlNet hints, so that any
    sampler works on the whole latent as ever. Out of memory leads to smaller batches and then to
    smaller tiles for the rest of the sampling, which this object therefore serves alone.

    Args:
        layout: how to cut.
        region: (B, 1, H, W) on the latent, or None: tiles in which it is zero are not computed, but
            taken from the LQ latent.
        on_tiles: called with the number of tiles that are done and all of them.
        tell: is told when memory runs out.

    Source: StableSR (arXiv 2305.07015), section 3.4.
    """

    def __init__(
        self,
        layout: TileLayout,
        region: Tensor | None = None,
        on_tiles: Callable[[int, int], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.layout = layout
        self._region = region
        self._on_tiles = on_tiles
        self._tell = tell
        self._groups: list[list[Unit]] | None = None
        self._caches = StepCaches()

    def __call__(
        self,
        executor: Any,
        model: Any,
        conds: Conds,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        **kwargs: Any,
    ) -> list[Tensor]:
        """Runs the conditions of one step.

        Args:
            x_in: (B, C, H, W) noisy latents.
            timestep: (B,) sigmas.

        Returns:
            One (B, C, H, W) per condition.

        Raises:
            PFStorerError: out of memory even with the smallest tiles.
        """

        def shrink() -> str:
            before, self.layout = self.layout, self._smaller(can_be_cut(conds))
            self._groups = None
            memory: FeatureMemory | None = model_options["transformer_options"].get(MEMORY)
            if memory is not None:
                memory.forget()
            self._caches.forget()
            return (
                f"with {before.batch} tiles of {before.tile} latent pixels at once; going on with "
                f"{self.layout.batch} of {self.layout.tile}"
            )

        return retry_smaller(
            lambda: self._evaluate(executor, model, conds, x_in, timestep, model_options, **kwargs),
            shrink,
            self._tell,
        )

    def _smaller(self, divisible: bool) -> TileLayout:
        smaller = self.layout.smaller()
        if smaller is None or not (divisible or len(smaller.tiles) == 1):
            raise PFStorerError(
                f"There is not enough memory even for one tile of {self.layout.tile} latent "
                "pixels; close other programs, or start ComfyUI with --lowvram or --cpu."
            )
        return smaller

    def _evaluate(
        self,
        executor: Any,
        model: Any,
        conds: Conds,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        **kwargs: Any,
    ) -> list[Tensor]:
        tiles = self.layout.tiles
        # What cannot be cut goes as a whole: `check_conditioning` lets it pass with one tile only.
        whole = x_in.shape[0] <= self.layout.batch or not can_be_cut(conds)
        if len(tiles) == 1 and whole:
            return executor(model, conds, x_in, timestep, model_options, **kwargs)
        areas = has_areas(conds)
        memory: FeatureMemory | None = model_options["transformer_options"].get(MEMORY)
        batches = list(self._batches(conds, x_in.shape[0], 1 if areas else self.layout.batch))
        blends = [TileBlend(tuple(x_in.shape), x_in.device) for _ in conds]
        done, total = 0, sum(len(units) for units in batches)
        shared_areas: dict[int, Any] = {}
        for units in batches:
            mm.throw_exception_if_processing_interrupted()
            x = torch.cat([tile.crop(x_in[item : item + 1]) for item, tile in units])
            sigmas = timestep[[item for item, _ in units]]
            step = memory.step(len(units), tuple(units)) if memory and not areas else None
            own = self._caches.of(tuple(units), model_options["transformer_options"])
            outputs = executor(
                model,
                crop_conds(conds, units, x_in, shared_areas),
                x,
                sigmas,
                with_options(model_options, {**own, STEP: step}),
                **kwargs,
            )
            for blend, output in zip(blends, outputs, strict=True):
                for row, (item, tile) in enumerate(units):
                    blend.add(tile, output[row : row + 1], item)
            done += len(units)
            if self._on_tiles is not None:
                self._on_tiles(done, total)
        passed = 0.0 if self._region is None else _lq_latent(conds).to(x_in)
        return [blend.mean(passed).to(x_in.dtype) for blend in blends]

    def _batches(self, conds: Conds, items: int, size: int) -> Iterator[list[Unit]]:
        """Yields the tiles to compute; those in one batch meet the same identities' masks.

        A tile outside all masks so pays nothing for the adapters.
        """
        if self._groups is None:  # the masks stay the same for the whole sampling
            groups: dict[tuple[bool, ...], list[Unit]] = {}
            for tile in self.layout.tiles:
                for item in range(items):
                    if self._region is not None and not tile.crop(self._region[item]).any():
                        continue
                    met = touched_identities(conds, item, tile)
                    groups.setdefault(met, []).append(Unit(item, tile))
            self._groups = list(groups.values())
        for units in self._groups:
            for start in range(0, len(units), size):
                yield units[start : start + size]


class TileMemory:
    """`PREPARE_SAMPLING` wrapper: the host makes room for a batch of tiles, not for the picture."""

    def __init__(self, layout: TileLayout) -> None:
        self.layout = layout

    def __call__(
        self, executor: Any, model: Any, noise_shape: list[int], *args: Any, **kwargs: Any
    ) -> Any:
        """Prepares the sampling of a latent of noise_shape (B, C, H, W)."""
        batch = min(self.layout.batch, noise_shape[0] * len(self.layout.tiles))
        tiled_shape = [batch, noise_shape[1], *self.layout.tile_size]
        return executor(model, tiled_shape, *args, **kwargs)


def set_tiles(model_patcher: Any, steps: TiledSteps) -> Any:
    """Returns a clone of a restorer's MODEL that is sampled tile by tile.

    Args:
        model_patcher: a MODEL that has its LQ latent and identities already, whose wrappers then
            stand before this one: it cuts what they add.
        steps: serves one sampling.
    """
    model = model_patcher.clone()
    for kind, wrapper in (
        (WrappersMP.CALC_COND_BATCH, steps),
        (WrappersMP.PREPARE_SAMPLING, TileMemory(steps.layout)),
    ):
        model.remove_wrappers_with_key(kind, TILES_KEY)
        model.add_wrapper_with_key(kind, TILES_KEY, wrapper)
    return model


def _lq_latent(conds: Conds) -> Tensor:
    latent: Tensor = next(c["model_conds"][LQ_COND].cond for cond in conds if cond for c in cond)
    return latent
