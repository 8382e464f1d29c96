"""Tells whether a picture probably shows the person of an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...identities.adapter import AdapterInfo
from ...identities.likeness import LikenessScale
from ...people.found import FoundHead
from ...pictures.detail import degradation_level
from ...pictures.resizing import resize_bicubic
from ..base import Base, base_of
from ..patch.applied import AppliedIdentity, numbers_text
from ..patch.masks import fitted_mask
from ..patch.model import restorer_wrapper
from .likeness import SIGMA, Likeness
from .regions import HEAD, head_height

# Of 48 photos of the right person about 6% score below with the mini restorer, 10% of extremely
# degraded ones. Between the levels of degradation the limit falls evenly.
_LEVELS, _LIMITS = (0.8, 0.95), (0.28, 0.25)
_USUAL = LikenessScale(own=0.73, strangers=0.06)  # of adapters of the mini restorer


@dataclasses.dataclass(frozen=True)
class PersonCheck:
    """What the check found for one identity.

    Args:
        number: of the identity, from 1.
        name: of the person.
        scores: (B,) likeness of each picture with the person, 0 for strangers and 1 for the photos
            of the training, see `LikenessScale`. NaN where it was not judged.
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


def check_persons(model: Any, vae: Any, images: Tensor, sigma: float = SIGMA) -> list[PersonCheck]:
    """Returns a check for each identity of which it is known where it is and what is usual.

    That is within its mask, or anywhere in the picture if there is nobody else; and its adapter
    remembers how its person looks, or the restorer is the mini.

    Args:
        model: a restorer's MODEL with identities.
        vae: its VAE.
        images: (B, 3, H, W) in [0, 1], the LQ images.
        sigma: of the noise; the limits hold for the default.
    """
    checks = []
    base, identities = base_of(model), restorer_wrapper(model).identities
    active = [x for x in identities if x.strength != 0]
    for number, identity in enumerate(identities, 1):
        scale = scale_of(identity.adapter.info, base)
        if identity.strength == 0 or (identity.mask is None and len(active) > 1) or scale is None:
            continue
        found = _faces(images, identity, base.trained_size)
        scores = torch.full((len(images),), torch.nan)
        limits = torch.full((len(images),), torch.nan)
        shown = [k for k, face in enumerate(found) if face is not None]
        if not shown:  # the masks are empty: nothing is done for this person
            continue
        faces = torch.cat([face for face in found if face is not None])
        scores[shown] = scale.relative(Likeness(model, vae, faces, sigma).of(identity))
        limits[shown] = limits_of(degradation_level(faces))
        name = identity.adapter.person
        checks.append(PersonCheck(number, name, scores, limits))
    return checks


def scale_of(info: AdapterInfo, base: Base) -> LikenessScale | None:
    """Returns an adapter's own scale, the usual one with the mini restorer, or None."""
    return info.likeness or (_USUAL if base.checks_persons else None)


def limits_of(levels: Tensor) -> Tensor:
    """Returns the limits (B,) for levels of degradation (B,)."""
    (low, high), (first, last) = _LEVELS, _LIMITS
    return first + (last - first) * ((levels - low) / (high - low)).clamp(0, 1)


def _faces(images: Tensor, identity: AppliedIdentity, size: int) -> list[Tensor | None]:
    """Returns where the identity is in each of the images (B, 3, H, W), as (1, 3, size, size)."""
    masks: Sequence[Tensor | None] = [None] * len(images)
    if identity.mask is not None:
        masks = list(fitted_mask(identity.mask, (len(images), 1, *images.shape[2:]))[:, 0])
    faces = [_face(image[None], mask) for image, mask in zip(images, masks, strict=True)]
    return [face if face is None else resize_bicubic(face, (size, size)) for face in faces]


def head_picture(image: Tensor, head: FoundHead, size: int, factor: float = 1.0) -> Tensor:
    """Returns a head of an image (1, 3, H, W) framed as in training, (1, 3, size, size).

    The factor is on the size of the head's box.
    """
    left, top, right, bottom = head.box
    middle = (top + bottom) / 2, (left + right) / 2
    face = _square(image, factor * max(bottom - top, right - left) / HEAD, middle)
    return resize_bicubic(face, (size, size)).clamp(0, 1)


def _face(image: Tensor, mask: Tensor | None) -> Tensor | None:
    """Returns the square of an image (1, 3, H, W) in which a mask (H, W) lies as in training."""
    height, width = image.shape[2:]
    if mask is None:
        return _square(image, min(height, width), (height / 2, width / 2))
    head = head_height(mask, (height, width))
    if not head:
        return None
    rows, columns = (mask > 0.5 * mask.max()).nonzero().float().T + 0.5
    return _square(image, head / HEAD, (float(rows.mean()), float(columns.mean())))


def _square(image: Tensor, side: float, middle: tuple[float, float]) -> Tensor:
    """Returns a square of an image (1, 3, H, W) around (y, x), moved and cut to lie inside."""
    height, width = image.shape[2:]
    whole = max(1, round(min(side, height, width)))
    top, left = (
        min(max(0, round(centre - whole / 2)), length - whole)
        for centre, length in zip(middle, (height, width), strict=True)
    )
    return image[:, :, top : top + whole, left : left + whole].contiguous()
