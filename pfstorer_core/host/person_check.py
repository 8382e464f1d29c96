"""Tells whether a picture probably shows the person of an adapter.

An adapter has learnt to draw its person where the LQ image says nothing. If the picture, hidden
under noise, is told better by the restorer with the adapter than without, it probably is that
person; if it is told clearly worse, it probably is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import functional as F

from ..automatic_gamma import degradation_level
from ..degradation import resize_bicubic
from . import patches
from .identities import AppliedIdentity
from .loading import restoration, trained_size
from .regions import HEAD, fitted_mask

SIGMA = 2.5  # of the noise: faces are hardly seen under more, and degradation shows under less
_SEED = 1  # of the noise, which all pictures share: a poor choice doubles the false alarms
_GRID = 16  # cells a side, over whose means pictures are compared
_AT_ONCE = 8  # pictures
# Of 96 pictures of the right person about 5% score below; the worse the picture, the lower. Between
# the levels of degradation the limit falls evenly.
_LEVELS, _LIMITS = (0.8, 1.0), (-0.2, -0.27)


@dataclasses.dataclass(frozen=True)
class PersonCheck:
    """What the check found for one identity.

    Args:
        number: of the identity, from 1.
        name: of the person.
        scores: (B,) by how much better the adapter tells each picture than the base does, as a
            share of the base's error; at most 1.
        limits: (B,) below which a picture of the person rarely scores.
    """

    number: int
    name: str
    scores: Tensor
    limits: Tensor

    @property
    def doubtful(self) -> list[int]:
        """Numbers, from 1, of the pictures that probably show somebody else."""
        return [k for k, low in enumerate((self.scores < self.limits).tolist(), 1) if low]

    def __str__(self) -> str:
        scores = ", ".join(f"{float(score):+.2f}" for score in self.scores)
        who = f"Identity {self.number} ({self.name})"
        if not self.doubtful:
            return f"{who}: nothing speaks against this person (score {scores})"
        which = "the photo"
        if len(self.scores) > 1:
            which = "photo " + ", ".join(map(str, self.doubtful))
        return (
            f"{who}: {which} may not show this person (score {scores}); look whether adapter and "
            "mask are the right ones"
        )


@torch.no_grad()
def check_persons(model: Any, vae: Any, images: Tensor, portraits: bool) -> list[PersonCheck]:
    """Returns a check for each identity of which it is known where it is.

    Args:
        model: a restorer's MODEL with identities.
        vae: its VAE.
        images: (B, 3, H, W) in [0, 1], the LQ images.
        portraits: whether an identity without a mask fills the picture.

    Source: ours, after Li et al. 2023 (arXiv 2303.16203), which classifies by a diffusion model's
    error under noise.
    """
    checks = []
    identities = patches.restorer_wrapper(model).identities
    for number, identity in enumerate(identities, 1):
        if identity.strength == 0 or (identity.mask is None and not portraits):
            continue
        faces = _faces(images, identity, trained_size(model))
        alone = dataclasses.replace(identity, strength=1.0, gammas=None, mask=None, sigmas=None)
        scores = [_score(model, vae, alone, part) for part in faces.split(_AT_ONCE)]
        checks.append(
            PersonCheck(
                number,
                identity.adapter.info.name or "unnamed",
                torch.cat(scores),
                _limits(degradation_level(faces)),
            )
        )
    return checks


def _score(model: Any, vae: Any, identity: AppliedIdentity, faces: Tensor) -> Tensor:
    """Returns the scores (B,) of faces (B, 3, S, S)."""
    latent = vae.encode(faces.movedim(1, -1))  # (B, C, h, w)
    generator = torch.Generator().manual_seed(_SEED)
    noise, no_lq = (torch.randn(latent[:1].shape, generator=generator) for _ in range(2))
    base = patches.set_identities(model, [])
    person = patches.set_identities(model, [identity])
    # A noise and its opposite: most of what the noise does to the errors cancels out.
    base_error, person_error = (
        _error(m, latent, noise, no_lq) + _error(m, latent, -noise, -no_lq) for m in (base, person)
    )
    return (base_error - person_error) / base_error


def _error(model: Any, latent: Tensor, noise: Tensor, no_lq: Tensor) -> Tensor:
    """Returns how far off (B,) the prediction of latents (B, C, h, w) seen under noise alone is."""
    model = patches.set_lq_latent(model, no_lq.expand_as(latent).to(latent))
    prompt = restoration(model).empty_prompt
    # One Euler step down to sigma 0 gives the model's prediction of the clean latent.
    predicted = comfy.sample.sample_custom(
        model,
        noise.expand_as(latent).to(latent),
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([SIGMA, 0.0]),
        prompt,
        prompt,
        latent,
        disable_pbar=True,
        seed=0,
    )
    cells = F.adaptive_avg_pool2d((predicted - latent).float().cpu(), _GRID)  # (B, C, 16, 16)
    return cells.square().flatten(1).mean(1)


def _faces(images: Tensor, identity: AppliedIdentity, size: int) -> Tensor:
    """Returns where the identity is in each of the images (B, 3, H, W) as (B, 3, size, size)."""
    masks: Sequence[Tensor | None] = [None] * len(images)
    if identity.mask is not None:
        masks = list(fitted_mask(identity.mask, (len(images), 1, *images.shape[2:])))
    faces = [_face(image[None], mask) for image, mask in zip(images, masks, strict=True)]
    return torch.cat([resize_bicubic(face.contiguous(), (size, size)) for face in faces])


def _face(image: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the square of an image (1, 3, H, W) in which a mask (1, H, W) lies as in training."""
    height, width = image.shape[2:]
    side, middle = float(min(height, width)), (height / 2, width / 2)
    if mask is not None and bool(mask.any()):
        rows, columns = (mask[0] > 0.5 * mask.max()).nonzero().T
        spans = [(float(x.min()), float(x.max()) + 1) for x in (rows, columns)]
        side = min(side, max(high - low for low, high in spans) / HEAD)
        middle = (sum(spans[0]) / 2, sum(spans[1]) / 2)
    whole = max(1, round(side))
    top, left = (
        min(max(0, round(centre - side / 2)), length - whole)
        for centre, length in zip(middle, (height, width), strict=True)
    )
    return image[:, :, top : top + whole, left : left + whole]


def _limits(levels: Tensor) -> Tensor:
    (low, high), (first, last) = _LEVELS, _LIMITS
    return first + (last - first) * ((levels - low) / (high - low)).clamp(0, 1)
