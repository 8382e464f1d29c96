"""Features of the LQ latent for several steps of a sampling at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

STEPS = 4  # that are encoded at once, where a device waits to be told what to do
# Latent pixels that are encoded at once, over all steps and items: eight tiles' worth.
_ENCODED = 8 * 64 * 64
# Latent pixels whose features are kept for coming steps: 90 MB in half precision.
_KEPT = 4 * _ENCODED


def steps_at_once(device: torch.device) -> int:
    """Returns how many steps are encoded at once; a CPU would gain nothing."""
    return 1 if device.type == "cpu" else STEPS


@dataclass
class Schedule:
    """The noise levels that a sampler goes through.

    Args:
        sigmas: all, from the first to the last one that is evaluated.
        timesteps: (len(sigmas),) that belong to them.
    """

    sigmas: list[float]
    timesteps: Tensor

    @classmethod
    def of(cls, sigmas: Tensor, timestep_of: Callable[[Tensor], Tensor]) -> Schedule:
        """Reads a sampler's sigmas (n + 1,), of which the last is what remains at the end."""
        return cls(sigmas[:-1].tolist(), timestep_of(sigmas[:-1]).float())


@dataclass
class AheadMemory:
    """Features of coming steps, which were encoded together with those of an earlier one.

    A time-aware encoder is a small network, and a GPU takes hardly longer for several timesteps of
    one LQ latent than for one. A sampler that evaluates at other noise levels than its schedule's
    gets those encoded one by one.
    """

    _schedule: Schedule | None = None
    _at: int | None = None
    _kept: dict[tuple[Hashable, torch.device, int], list[Tensor]] = field(default_factory=dict)

    def begin(
        self, sigma: Tensor, sigmas: Tensor | None, timestep_of: Callable[[Tensor], Tensor]
    ) -> None:
        """Notes an evaluation.

        Args:
            sigma: (B,) of it.
            sigmas: (n + 1,) the sampler's schedule, if it is known.
            timestep_of: gives the timesteps that belong to sigmas.
        """
        if self._schedule is None and sigmas is not None:
            self._schedule = Schedule.of(sigmas, timestep_of)
        levels = set(sigma.tolist())
        known = self._schedule.sigmas if self._schedule is not None else []
        level = levels.pop()
        self._at = known.index(level) if not levels and level in known else None
        if self._at is not None:
            self._kept = {key: x for key, x in self._kept.items() if key[2] >= self._at}

    def forget(self) -> None:
        """Drops what is kept: the windows of the LQ latent are others from now on."""
        self._kept.clear()

    def take(self, key: Hashable, device: torch.device) -> list[Tensor] | None:
        """Returns the features of this evaluation, if an earlier one made them.

        Args:
            key: tells windows of the LQ latent apart.
            device: where they are.
        """
        return None if self._at is None else self._kept.get((key, device, self._at))

    def encode(
        self,
        key: Hashable,
        restorer: Callable[[Tensor, Tensor], Sequence[Tensor]],
        lq_latent: Tensor,
        timesteps: Tensor,
    ) -> Sequence[Tensor]:
        """Encodes LQ latents for this evaluation and some that follow.

        Args:
            key: tells windows of the LQ latent apart.
            restorer: the encoder.
            lq_latent: (B, C, h, w).
            timesteps: (B,) of this evaluation.

        Returns:
            The features of this one.
        """
        steps = self._to_encode(lq_latent)
        if not steps or self._schedule is None:
            return restorer(lq_latent, timesteps)
        items, count = len(lq_latent), len(steps)
        coming = self._schedule.timesteps[steps.start + 1 : steps.stop].to(timesteps)
        times = torch.cat([timesteps, coming.repeat_interleave(items)])  # (count * B,)
        found = restorer(lq_latent.repeat(count, 1, 1, 1), times)
        by_step = [list(parts) for parts in zip(*(x.chunk(count) for x in found), strict=True)]
        # Those of this step too: a sampler of second order asks again.
        for step, features in zip(steps, by_step, strict=True):
            self._kept[key, lq_latent.device, step] = features
        return by_step[0]

    def _to_encode(self, lq_latent: Tensor) -> range:
        """This step and those after it to encode with it, as memory allows; none is unknown."""
        if self._schedule is None or self._at is None:
            return range(0)
        pixels = lq_latent[:, 0].numel()
        kept = sum(features[0][:, 0].numel() for features in self._kept.values())
        most = min(steps_at_once(lq_latent.device), _ENCODED // pixels, (_KEPT - kept) // pixels)
        end = min(self._at + most, len(self._schedule.sigmas))
        return range(self._at, end) if most > 1 else range(0)
