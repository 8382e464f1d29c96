"""How much of what an adapter changes a face confirms: whether it shows the adapter's person.

An adapter has learnt to draw its person where the LQ image says nothing. The face is hidden under
noise, and the restorer, given nothing but noise for an LQ image, tells what is there, without and
with the adapter. If the face is that person, it lies in the direction in which the adapter moves
the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...areas import area_mean
from ..base import base_of
from ..memory import retry_smaller
from ..patch.applied import AppliedIdentity
from ..patch.model import set_identities, set_lq_latent

SIGMA = 3.5  # of the noise: degradation shows under less
_SEED = 1  # of the noise, which all pictures share: a poor choice doubles the false alarms
_GRIDS = (16, 8)  # cells a side, over whose means answers are compared
_AT_ONCE = 8  # faces
Progress = Callable[[], None]


class Likeness:
    """Faces under noise, and what the base makes of them.

    Args:
        model: a restorer's MODEL; its identities do not count.
        vae: its VAE.
        faces: (B, 3, S, S) in [0, 1], framed as in training, in the size trained on.
        sigma: of the noise; limits hold for the default.
        on_batch: is told of every batch of faces that an answer was made for; what it raises ends
            the work.

    Source: ours, after Li et al. 2023 (arXiv 2303.16203), which classifies by a diffusion model's
    error under noise.
    """

    def __init__(
        self,
        model: Any,
        vae: Any,
        faces: Tensor,
        sigma: float = SIGMA,
        on_batch: Progress = lambda: None,
    ) -> None:
        self.model, self.vae, self.faces, self.sigma = model, vae, faces, sigma
        self._on_batch = on_batch
        self._at_once = _AT_ONCE
        self._latents: list[Tensor] = []
        self._base: list[list[Tensor]] = []

    @torch.no_grad()
    def of(self, identity: AppliedIdentity) -> Tensor:
        """Returns the likeness (B,) of the faces with an identity's person.

        It is which share of the way from the base's answer to the adapter's leads towards the face:
        about 0 for strangers, more than that for the person. NaN where memory is too short for one
        face, and for an adapter that changes nothing.
        """
        alone = dataclasses.replace(identity, strength=1.0, gammas=None, mask=None, sigmas=None)
        person = set_identities(self.model, [alone])

        def run() -> Tensor:
            if not self._at_once:
                return torch.full((len(self.faces),), torch.nan)
            self._prepare()
            found = []
            for latent, base in zip(self._latents, self._base, strict=True):
                found.append(_share(latent, base, self._answers(person, latent)))
            return torch.cat(found)

        return retry_smaller(run, self._shrink)

    def _prepare(self) -> None:
        if self._base:
            return
        plain = set_identities(self.model, [])
        parts = self.faces.movedim(1, -1).split(self._at_once)
        self._latents = [self.vae.encode(part) for part in parts]  # (b, C, h, w) each
        self._base = [self._answers(plain, latent) for latent in self._latents]

    def _shrink(self) -> str:
        self._at_once //= 2
        self._latents, self._base = [], []
        if not self._at_once:
            return "while looking whose face it is, which is left out"
        return f"while looking whose face it is: {self._at_once} at once from now on"

    def _answers(self, model: Any, latent: Tensor) -> list[Tensor]:
        """Returns two answers (b, C, h, w) on the CPU, under a noise and its opposite.

        Most of what the noise does to the errors cancels out so.
        """
        generator = torch.Generator().manual_seed(_SEED)
        noise, no_lq = (torch.randn(latent[:1].shape, generator=generator) for _ in range(2))
        found = []
        for sign in (1, -1):
            found.append(_answer(model, latent, sign * noise, sign * no_lq, self.sigma))
            self._on_batch()
        return found


def _answer(model: Any, latent: Tensor, noise: Tensor, no_lq: Tensor, sigma: float) -> Tensor:
    """Returns what is told of latents (b, C, h, w) that are seen under noise alone."""
    model = set_lq_latent(model, no_lq.expand_as(latent).to(latent))
    prompt = base_of(model).empty_prompt
    # One Euler step down to sigma 0 gives the model's prediction of the clean latent.
    predicted = comfy.sample.sample_custom(
        model,
        noise.expand_as(latent).to(latent),
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([sigma, 0.0]),
        prompt,
        prompt,
        latent,
        disable_pbar=True,
        seed=0,
    )
    return predicted.float().cpu()


def _share(latent: Tensor, base: list[Tensor], person: list[Tensor]) -> Tensor:
    """Returns the likeness (b,) from two answers each of base and adapter."""
    truth = latent.float().cpu()
    shares = []
    for grid in _GRIDS:
        towards = length = torch.zeros(len(truth))
        for without, given in zip(base, person, strict=True):
            wrong, change = (
                area_mean(x, (grid, grid)).flatten(1) for x in (truth - without, given - without)
            )
            towards = towards + (wrong * change).sum(1)
            length = length + change.square().sum(1)
        shares.append(torch.where(length > 0, towards / length, torch.nan))
    return torch.stack(shares).mean(0)
