"""Where in a picture identities act, and what is told about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...areas import area_mean
from ..patch.applied import AppliedIdentity
from ..patch.masks import Shape, fitted_mask
from ..tiles.layout import TileLayout

_HEAD_FORM = 1.26  # height of an ellipse that is 0.8 times as wide, over the root of its area
_SHARP_RADIUS = 32  # pixels; wider blurs are made at a smaller size
HEAD = 0.75  # of the side of a training picture: the height of a head and its hair


def region_of(identities: Sequence[AppliedIdentity], shape: Shape) -> Tensor:
    """Returns the union (B, 1, H, W) in [0, 1] of the identities' masks, scaled to a shape."""
    batch, _, height, width = shape
    region = torch.zeros(batch, 1, height, width)
    for identity in identities:
        if identity.mask is not None:
            region = torch.maximum(region, fitted_mask(identity.mask, shape))
    return region


def known_factor(
    identities: Sequence[AppliedIdentity], size: tuple[int, int], trained: int, portrait: bool
) -> float | None:
    """Returns the factor on a picture's size at which its largest face is as large as in training.

    Args:
        identities: those applied to the MODEL; one without a mask makes the picture a portrait, and
            one of gamma 0 does not count. Of several pictures' masks the largest counts.
        size: (height, width) of the picture in pixels.
        trained: side in pixels of the pictures that the restorer was made for.
        portrait: whether the picture is a portrait where no identity says anything else.

    Returns:
        None where nothing is known of the faces.
    """
    whole = trained / max(size)
    heads = []  # heights in pixels
    for identity in identities:
        if identity.strength == 0:
            continue
        if identity.mask is None:
            return whole
        for mask in identity.mask:  # (h, w)
            head = head_height(mask, size)
            if head:
                heads.append(head)
    if heads:
        return max(whole, HEAD * trained / max(heads))
    return whole if portrait else None


def head_height(mask: Tensor, size: tuple[int, int]) -> float:
    """Returns the height in pixels of the head that a mask shows; 0 of an empty one.

    From the area, on which specks and ragged edges have little influence.

    Args:
        mask: (h, w) in [0, 1].
        size: (height, width) of the picture in pixels.
    """
    share = float((mask > 0.5 * mask.max()).float().mean())
    return _HEAD_FORM * math.sqrt(share * size[0] * size[1])


def feathered(identities: Sequence[AppliedIdentity], shape: Shape, feather: int) -> Tensor:
    """Returns the share (B, 1, H, W) in [0, 1] of the restored picture in the result.

    It is 0 outside the masks and rises to 1 over `feather` pixels inside them, or over fewer in a
    mask that is too small for that. Where masks touch there is no edge.

    Args:
        identities: their masks belong to the picture.
        shape: (B, C, H, W) of the result.
        feather: pixels.
    """
    masks = [fitted_mask(x.mask, shape) for x in identities if x.mask is not None]
    union = region_of(identities, shape)
    share = torch.zeros_like(union)
    for region in [union, *masks] if len(masks) > 1 else masks:
        items = [_soft(item, feather) for item in region.split(1)]
        share = torch.maximum(share, torch.cat(items))
    return share


def mask_report(
    identities: Sequence[AppliedIdentity], shape: Shape, layout: TileLayout
) -> list[str]:
    """Says for each identity what is done for it.

    Args:
        identities: those applied to the MODEL.
        shape: (B, C, h, w) of the latent.
        layout: its tiles.

    Returns:
        One line per identity.
    """
    lines = []
    tiles = layout.tiles
    for number, identity in enumerate(identities, 1):
        name = identity.adapter.person
        text = f"Identity {number} ({name}), gamma {identity.gamma_text}: "
        if identity.mask is None:
            text += "everywhere that is restored"
        else:
            mask = fitted_mask(identity.mask, shape)  # (B, 1, h, w)
            met = sum(bool(tile.crop(item).any()) for tile in tiles for item in mask)
            text += (
                f"mask of {100 * float(mask.mean()):.1f}% of the picture, in {met} of "
                f"{len(tiles) * len(mask)} tiles"
            )
            if not met:
                text += " (the mask is empty, so nothing is done for this person)"
        if identity.strength == 0:
            text += " (gamma 0 is the base: the identity is not used)"
        lines.append(text)
    return lines


def _soft(region: Tensor, feather: int) -> Tensor:
    """Returns a region (1, 1, H, W) that fades inside its edge, over less if it is small."""
    while feather > 0:
        share = region * (2 * _box_blur(region, feather) - 1).clamp(0, 1)
        if bool(share.amax() >= 0.99 * region.amax()):
            return share
        feather //= 2
    return region


def _box_blur(region: Tensor, radius: int) -> Tensor:
    size = region.shape[2:]
    if radius > _SHARP_RADIUS:  # the time of a blur grows with its radius
        scale = math.ceil(radius / _SHARP_RADIUS)
        small = area_mean(region, (-(-size[0] // scale), -(-size[1] // scale)))
        return F.interpolate(_box_blur(small, radius // scale), size, mode="bilinear")
    side = 2 * radius + 1
    wide = F.pad(region, (radius, radius, 0, 0), mode="replicate")
    wide = F.avg_pool2d(wide, (1, side), stride=1)  # (B, 1, H, W)
    high = F.pad(wide, (0, 0, radius, radius), mode="replicate")
    return F.avg_pool2d(high, (side, 1), stride=1)  # (B, 1, H, W)
