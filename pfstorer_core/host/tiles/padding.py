"""Extends what belongs to a picture, so that the UNet's levels have whole latent pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import comfy.controlnet
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional as F

from ...areas import area_mean
from ...tiling.grid import Tile
from ...tiling.upscaling import Size
from ..patch.applied import AppliedIdentity
from ..patch.model import set_identities


def padded_size(size: Size, step: int) -> Size:
    """Returns the size in pixels at which each level of the UNet has two latent pixels or more.

    Args:
        size: of the picture in pixels.
        step: pixels per latent pixel of the UNet's coarsest level.
    """
    height, width = (max(2, -(-side // step)) * step for side in size)
    return height, width


def mirrored(length: int, padded: int, device: torch.device) -> Tensor:
    """Returns the indices (padded,) that extend an axis by its mirror image at the end.

    Unlike `torch.nn.functional.pad`, also where the axis is shorter than what is added.
    """
    period = max(1, 2 * (length - 1))
    index = torch.arange(padded, device=device) % period  # (padded,)
    return torch.minimum(index, period - index).clamp(max=length - 1)


def pad(images: Tensor, padded: Size) -> Tensor:
    """Extends images (B, C, H, W) to the right and below by their mirror image."""
    if tuple(images.shape[2:]) == padded:
        return images
    return padded_window(images, padded, Tile(0, 0, *padded))


def padded_window(images: Tensor, padded: Size, window: Tile) -> Tensor:
    """Returns a window (B, C, h, w) of images (B, C, H, W) as `pad` extends them."""
    rows = mirrored(images.shape[2], padded[0], images.device)[window.y0 : window.y1]
    columns = mirrored(images.shape[3], padded[1], images.device)[window.x0 : window.x1]
    return images[:, :, rows][:, :, :, columns]


def pad_masks(
    model: Any,
    identities: Sequence[AppliedIdentity],
    size: Size,
    padded: Size,
    latent_shape: tuple[int, int, int, int],
) -> Any:
    """Returns a restorer's MODEL whose identities' masks belong to the padded picture's latent.

    At the latent's size they are small, for they move to the MODEL's device at every step.

    Args:
        model: a restorer's MODEL; stays as it is.
        identities: those that are applied to it.
        size: of the picture in pixels.
        padded: of the padded picture in pixels.
        latent_shape: (B, C, h, w) of its latent.
    """
    if all(identity.mask is None for identity in identities):
        return model
    latent = latent_shape[2], latent_shape[3]
    fitted = []
    for identity in identities:
        if identity.mask is not None:
            mask = identity.mask[:, None]  # (M, 1, H, W)
            if size != padded:
                mask = pad(area_mean(mask, size), padded)
            mask = area_mean(mask, latent)  # (M, 1, h, w)
            identity = dataclasses.replace(identity, mask=mask[:, 0])
        fitted.append(identity)
    return set_identities(model, fitted)


def relative_areas(conditioning: Sequence[Any], size: Size, cell: int) -> list[Any]:
    """Returns a CONDITIONING whose areas are shares of the output, for passes of other sizes.

    Args:
        conditioning: list of (tensor, dictionary); stays as it is.
        size: of the output in pixels, to which areas in latent pixels belong.
        cell: pixels per latent pixel.
    """
    relative = []
    for tensor, options in conditioning:
        area = options.get("area")
        if area is not None and area[0] != "percentage":
            shares = (side * cell / size[k % 2] for k, side in enumerate(area))
            options = {**options, "area": ("percentage", *shares)}
        relative.append((tensor, options))
    return relative


def pad_conditioning(
    conditioning: Sequence[Any], size: Size, padded: Size, controls: dict[int, Any]
) -> list[Any]:
    """Returns a CONDITIONING whose masks, areas and ControlNet hints belong to the padded picture.

    Hints are brought to the size of the output here, once, and not at every step.

    Args:
        conditioning: list of (tensor, dictionary); stays as it is.
        size: of the output in pixels.
        padded: of the padded picture in pixels.
        controls: gets the padded control of each control's id, so that conditions which share one
            still do: the host runs only those together.
    """
    return [
        (tensor, _pad_options(options, size, padded, controls)) for tensor, options in conditioning
    ]


def _pad_options(
    options: dict[str, Any], size: Size, padded: Size, controls: dict[int, Any]
) -> dict[str, Any]:
    fitted = dict(options)
    if "mask" in options and size != padded:
        mask = options["mask"].float().reshape(-1, 1, *options["mask"].shape[-2:])  # (M, 1, h, w)
        mask = F.interpolate(mask, size, mode="bilinear")
        fitted["mask"] = pad(mask, padded)[:, 0]
    area = options.get("area")
    if area is not None and area[0] == "percentage":
        shares = size[0] / padded[0], size[1] / padded[1]
        fitted["area"] = ("percentage", *(x * shares[k % 2] for k, x in enumerate(area[1:])))
    if "control" in options:
        fitted["control"] = _pad_control(options["control"], size, padded, controls)
    return fitted


def _pad_control(control: Any, size: Size, padded: Size, controls: dict[int, Any]) -> Any:
    if id(control) in controls:
        return controls[id(control)]
    if type(control).__module__ != comfy.controlnet.__name__:
        return control  # another custom node's, with rules of its own
    height, width = size

    def fit(hint: Tensor) -> Tensor:
        method = control.upscale_algorithm
        hint = comfy.utils.common_upscale(hint, width, height, method, "center")
        return pad(hint, padded)

    fitted = control.copy()
    fitted.cond_hint_original = fit(control.cond_hint_original)
    fitted.extra_concat_orig = [fit(extra) for extra in control.extra_concat_orig]
    if control.previous_controlnet is not None:
        previous = _pad_control(control.previous_controlnet, size, padded, controls)
        fitted.set_previous_controlnet(previous)
    controls[id(control)] = fitted
    return fitted
