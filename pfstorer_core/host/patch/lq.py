"""The LQ latent on its way to the UNet, and the encoder's features of one step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ...errors import PFStorerError
from ..conditions import Conds, has_areas, with_model_conds, with_options
from .ahead import AheadMemory
from .sampling import SAMPLING, SamplingMemory

LQ_COND = "pfstorer_lq_latent"  # the model condition, and so the keyword of the UNet's forward
STEP = "pfstorer_step"
MEMORY = "pfstorer_features"
ITEMS = "pfstorer_items"
_SAME = 1e-4  # of the largest value, by which latents may differ that are the same


@dataclass
class StepFeatures:
    """Encoder features of `items` LQ latents at one timestep, per device.

    ComfyUI splits the conditions of a step into several forwards when memory is short; all of them
    see the same LQ latents and timestep, so the first one's features serve the others.

    Args:
        items: number of LQ latents.
        resting: where the features lie between forwards; None leaves them where they are.
        ahead: holds those of coming steps; None encodes for this one alone.
        key: tells windows of the LQ latent apart in it.
    """

    items: int
    resting: torch.device | None = None
    ahead: AheadMemory | None = None
    key: Hashable = None
    _features: dict[torch.device, Sequence[Tensor]] = field(default_factory=dict)

    def of(
        self,
        restorer: Callable[[Tensor, Tensor], Sequence[Tensor]],
        lq_latent: Tensor,
        timesteps: Tensor,
    ) -> Sequence[Tensor]:
        """Returns the features on the device of the LQ latents, which are encoded once.

        Args:
            restorer: the encoder.
            lq_latent: (items, C, h, w) LQ latents.
            timesteps: (items,).
        """
        device = lq_latent.device
        if device not in self._features:
            if self.ahead is None:
                found = restorer(lq_latent, timesteps)
            else:
                found = self.ahead.take(self.key, device) or self.ahead.encode(
                    self.key, restorer, lq_latent, timesteps
                )
            self._features[device] = [x.to(self.resting or device) for x in found]
        return [x.to(device) for x in self._features[device]]


class FeatureMemory:
    """Hands out `StepFeatures`, the same ones for `interval` evaluations of the model in a row.

    Features kept over steps rest in main memory, for those of all tiles of a large picture do not
    fit elsewhere. An evaluation at the sigma of the one before does not count: samplers of second
    order, and a step that is run again with smaller tiles, ask twice.

    Args:
        interval: 1 encodes for every evaluation, which is exact.
        ahead: with an interval of 1, holds features of coming steps; None encodes one by one.
    """

    def __init__(self, interval: int = 1, ahead: AheadMemory | None = None) -> None:
        self.interval = interval
        self._ahead = ahead
        self._evaluations = -1
        self._sigma: float | None = None
        self._steps: dict[Hashable, StepFeatures] = {}

    def begin(self, timestep: Tensor) -> None:
        """Notes an evaluation at a sigma, timestep: (B,)."""
        sigma = float(timestep.max()) if self.interval > 1 else None
        if sigma is None or sigma == self._sigma:
            return
        self._sigma = sigma
        self._evaluations += 1
        if self._evaluations % self.interval == 0:
            self._steps.clear()

    def forget(self) -> None:
        """Drops what is kept: the windows of the LQ latent are others from now on."""
        self._steps.clear()
        if self._ahead is not None:
            self._ahead.forget()

    def step(self, items: int, key: Hashable = None) -> StepFeatures:
        """Returns the features of `items` latents; `key` tells windows of the LQ latent apart."""
        if self.interval == 1:
            return StepFeatures(items, ahead=self._ahead, key=key)
        return self._steps.setdefault(key, StepFeatures(items, torch.device("cpu")))


@dataclass(frozen=True)
class Items:
    """Which of the LQ images a sampler's latents belong to.

    Args:
        numbers: one for each latent of the sampler's batch.
    """

    numbers: tuple[int, ...]

    def of(self, values: Tensor) -> Tensor:
        """Returns values (N, ...) of the LQ images in the sampler's order; one is for all."""
        return values if len(values) == 1 else values[list(self.numbers)]


class LQMatch:
    """`OUTER_SAMPLE` wrapper that finds the LQ image of each latent that a sampler is given.

    Nodes between 'Condition on LQ Image' and the sampler may cut, repeat or reorder its latents.

    Args:
        lq_latent: (N, C, h, w) LQ latents, scaled like the diffusion latents.
    """

    def __init__(self, lq_latent: Tensor) -> None:
        self.lq_latent = lq_latent

    def __call__(
        self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Runs the sampling, latent_image: (B, C, h, w) before it is scaled."""
        guider = executor.class_obj
        latent_format = guider.model_patcher.get_model_object("latent_format")
        numbers = matching_items(latent_format.process_in(latent_image), self.lq_latent)
        options = guider.model_options.setdefault("transformer_options", {})
        options[ITEMS] = Items(numbers)
        return executor(noise, latent_image, *args, **kwargs)


def matching_items(latents: Tensor, lq_latents: Tensor) -> tuple[int, ...]:
    """Returns for each latent (B, C, h, w) the number of its LQ latent among (N, C, h, w).

    What is no LQ latent any more goes by position, as far as that is clear.

    Raises:
        PFStorerError: it is not.
    """
    count, known = len(latents), len(lq_latents)
    by_position = tuple(range(count)) if count == known else (0,) * count if known == 1 else None
    if latents.shape[1:] == lq_latents.shape[1:]:
        given, lq = latents.float().cpu(), lq_latents.float().cpu()
        near = _SAME * lq.abs().amax()
        numbers = []
        for place, latent in enumerate(given):
            same = ((lq - latent).abs().flatten(1).amax(1) <= near).nonzero().flatten().tolist()
            numbers.append(place if place in same else next(iter(same), None))
        if None not in numbers:
            return tuple(number for number in numbers if number is not None)
    if by_position is None:
        raise PFStorerError(
            f"The sampler's latent has {count} item(s), but the MODEL was conditioned on {known} "
            "LQ images, and which belong together is not to be seen; connect the LATENT that "
            "'Condition on LQ Image' gives, or condition on these images alone."
        )
    return by_position


class LQCondition:
    """`CALC_COND_BATCH` wrapper that gives every condition of a step the LQ latent.

    As a model condition, the latent is repeated over the batch, cropped to a condition's area and
    moved between devices by ComfyUI itself.

    Args:
        lq_latent: (B, C, H, W) LQ latent, scaled like the diffusion latents.
        encoder_interval: evaluations of the model that share the encoder's features. More than 1
            keeps features in this object, so it then serves one sampling.
    """

    def __init__(self, lq_latent: Tensor, encoder_interval: int = 1) -> None:
        self.lq_latent = lq_latent
        self._memory = FeatureMemory(encoder_interval)

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
        """Runs the conditions of one step, x_in: (B, C, H, W)."""
        check_latent_size(self.lq_latent, x_in)
        lq_cond = comfy.conds.CONDNoiseShape(items_of(model_options, self.lq_latent))
        conds = with_model_conds(conds, {LQ_COND: lq_cond})
        memory = self._begin(model, timestep, model_options.get("transformer_options", {}))
        options: dict[str, Any] = {MEMORY: memory}
        # Conditions with an area see their own crops, which cannot share features.
        if not has_areas(conds):
            options[STEP] = memory.step(x_in.shape[0])
        return executor(
            model, conds, x_in, timestep, with_options(model_options, options), **kwargs
        )

    def _begin(self, model: Any, timestep: Tensor, options: dict[str, Any]) -> FeatureMemory:
        sampling: SamplingMemory | None = options.get(SAMPLING)
        if self._memory.interval > 1 or sampling is None:
            self._memory.begin(timestep)
            return self._memory
        timestep_of = model.model_sampling.timestep
        sampling.ahead.begin(timestep, options.get("sample_sigmas"), timestep_of)
        return FeatureMemory(ahead=sampling.ahead)


def items_of(model_options: dict[str, Any], values: Tensor) -> Tensor:
    """Returns values (N, ...), one for each LQ image, as `LQMatch` found that they are sampled."""
    items: Items | None = model_options.get("transformer_options", {}).get(ITEMS)
    return values if items is None else items.of(values)


def check_latent_size(lq_latent: Tensor, x: Tensor) -> None:
    """Raises PFStorerError unless both are of one height and width, in latent pixels."""
    if x.shape[2:] != lq_latent.shape[2:]:
        raise PFStorerError(
            f"The sampler's latent is {_size(x)} latent pixels, but the MODEL was conditioned on "
            f"an LQ image of {_size(lq_latent)}; connect the LATENT that 'Condition on LQ Image' "
            "gives to the sampler, or one of the same size."
        )


def _size(latent: Tensor) -> str:
    return f"{latent.shape[-1]} x {latent.shape[-2]}"
