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

from ...areas import area_mean
from ...pictures.detail import degradation_level
from ...pictures.resizing import resize_bicubic
from ..base import base_of
from ..memory import retry_smaller
from ..patch.applied import AppliedIdentity, numbers_text
from ..patch.masks import fitted_mask
from ..patch.model import restorer_wrapper, set_identities, set_lq_latent
from .regions import HEAD, head_height

SIGMA = 3.5  # of the noise: degradation shows under less
_SEED = 1  # of the noise, which all pictures share: a poor choice doubles the false alarms
_GRID = 16  # cells a side, over whose means pictures are compared
_AT_ONCE = 8  # pictures
# Of 48 photos of the right person about 5% score below with the mini restorer; the worse the
# picture, the lower. Between the levels of degradation the limit falls evenly.
_LEVELS, _LIMITS = (0.85, 0.95), (-0.11, -0.55)


@dataclasses.dataclass(frozen=True)
class PersonCheck:
    """What the check found for one identity.

    Args:
        number: of the identity, from 1.
        name: of the person.
        scores: (B,) by how much better the adapter tells each picture than the base does, as a
            share of the base's error; at most 1. NaN where it was not judged.
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
        who = f"Identity {self.number} ({self.name})"
        judged = self.scores[~self.scores.isnan()]
        if not len(judged):
            return f"{who}: whether this is the person could not be judged"
        scores = numbers_text(judged, "+.2f")
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
def check_persons(model: Any, vae: Any, images: Tensor, sigma: float = SIGMA) -> list[PersonCheck]:
    """Returns a check for each identity of which it is known where it is.

    That is within its mask, or anywhere in the picture if there is nobody else.

    Args:
        model: a restorer's MODEL with identities.
        vae: its VAE.
        images: (B, 3, H, W) in [0, 1], the LQ images.
        sigma: of the noise; the limits hold for the default.

    Source: ours, after Li et al. 2023 (arXiv 2303.16203), which classifies by a diffusion model's
    error under noise.
    """
    checks = []
    size, identities = base_of(model).trained_size, restorer_wrapper(model).identities
    active = [x for x in identities if x.strength != 0]
    for number, identity in enumerate(identities, 1):
        if identity.strength == 0 or (identity.mask is None and len(active) > 1):
            continue
        found = _faces(images, identity, size)
        scores = torch.full((len(images),), torch.nan)
        limits = torch.full((len(images),), torch.nan)
        shown = [k for k, face in enumerate(found) if face is not None]
        if not shown:  # the masks are empty: nothing is done for this person
            continue
        faces = torch.cat([face for face in found if face is not None])
        alone = dataclasses.replace(identity, strength=1.0, gammas=None, mask=None, sigmas=None)
        scores[shown] = _scores(model, vae, alone, faces, sigma)
        limits[shown] = limits_of(degradation_level(faces))
        name = identity.adapter.info.name or "unnamed"
        checks.append(PersonCheck(number, name, scores, limits))
    return checks


def limits_of(levels: Tensor) -> Tensor:
    """Returns the limits (B,) for levels of degradation (B,)."""
    (low, high), (first, last) = _LEVELS, _LIMITS
    return first + (last - first) * ((levels - low) / (high - low)).clamp(0, 1)


def _scores(model: Any, vae: Any, identity: AppliedIdentity, faces: Tensor, sigma: float) -> Tensor:
    """Returns the scores (B,) of faces (B, 3, S, S); NaN where memory is too short for one."""
    base = set_identities(model, [])
    person = set_identities(model, [identity])
    at_once = [_AT_ONCE]

    def run() -> Tensor:
        if not at_once[0]:
            return torch.full((len(faces),), torch.nan)
        parts = faces.movedim(1, -1).split(at_once[0])
        latents = [vae.encode(part) for part in parts]  # (b, C, h, w) each
        return torch.cat([_score(base, person, latent, sigma) for latent in latents])

    def shrink() -> str:
        at_once[0] //= 2
        if not at_once[0]:
            return "while looking whose face it is, which is left out"
        return f"while looking whose face it is: {at_once[0]} at once from now on"

    return retry_smaller(run, shrink)


def _score(base: Any, person: Any, latent: Tensor, sigma: float) -> Tensor:
    """Returns the scores (B,) of latents (B, C, h, w)."""
    generator = torch.Generator().manual_seed(_SEED)
    noise, no_lq = (torch.randn(latent[:1].shape, generator=generator) for _ in range(2))
    # A noise and its opposite: most of what the noise does to the errors cancels out.
    base_error, person_error = (
        _error(m, latent, noise, no_lq, sigma) + _error(m, latent, -noise, -no_lq, sigma)
        for m in (base, person)
    )
    return (base_error - person_error) / base_error


def _error(model: Any, latent: Tensor, noise: Tensor, no_lq: Tensor, sigma: float) -> Tensor:
    """Returns how far off (B,) the prediction of latents (B, C, h, w) seen under noise alone is."""
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
    cells = area_mean((predicted - latent).float().cpu(), (_GRID, _GRID))  # (B, C, 16, 16)
    return cells.square().flatten(1).mean(1)


def _faces(images: Tensor, identity: AppliedIdentity, size: int) -> list[Tensor | None]:
    """Returns where the identity is in each of the images (B, 3, H, W), as (1, 3, size, size)."""
    masks: Sequence[Tensor | None] = [None] * len(images)
    if identity.mask is not None:
        masks = list(fitted_mask(identity.mask, (len(images), 1, *images.shape[2:]))[:, 0])
    faces = [_face(image[None], mask) for image, mask in zip(images, masks, strict=True)]
    return [face if face is None else resize_bicubic(face, (size, size)) for face in faces]


def _face(image: Tensor, mask: Tensor | None) -> Tensor | None:
    """Returns the square of an image (1, 3, H, W) in which a mask (H, W) lies as in training."""
    height, width = image.shape[2:]
    side, middle = float(min(height, width)), (height / 2, width / 2)
    if mask is not None:
        head = head_height(mask, (height, width))
        if not head:
            return None
        side = min(side, head / HEAD)
        rows, columns = (mask > 0.5 * mask.max()).nonzero().float().T + 0.5
        middle = float(rows.mean()), float(columns.mean())
    whole = max(1, round(side))
    top, left = (
        min(max(0, round(centre - side / 2)), length - whole)
        for centre, length in zip(middle, (height, width), strict=True)
    )
    return image[:, :, top : top + whole, left : left + whole].contiguous()
