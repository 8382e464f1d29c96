"""Cuts the conditions of a step to tiles: LQ latents, masks, areas, ControlNets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.conds
import comfy.controlnet
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import PFStorerError
from ...tiling.grid import Tile
from ..conditions import Conds

_WHOLE_PICTURE = ("SelfAttentionGuidance",)  # nodes of ComfyUI


class Unit(NamedTuple):
    """One tile of one item of a batch: what the UNet sees as an item of its own."""

    item: int
    tile: Tile


def crop_conds(
    conds: Conds, units: Sequence[Unit], x_in: Tensor, areas: dict[int, Any] | None = None
) -> Conds:
    """Returns a step's conditions as the UNet shall see them for a batch of tiles.

    Args:
        conds: conditions of the whole latent; they stay.
        units: tiles of one size; a single one where a condition has an area.
        x_in: (B, C, H, W) the whole latent.
        areas: keeps what the host makes of each condition's area, for the other tiles of the step.

    Returns:
        Conditions for a batch of `len(units)` items of the tiles' size. Those whose area does not
        meet the tile are left out.

    Raises:
        PFStorerError: a condition that cannot be cut.
    """
    controls: dict[int, Any] = {}  # the host batches conditions that share one control object
    areas = {} if areas is None else areas
    return [
        cond
        and [c for c in (_crop(c, units, x_in, controls, areas) for c in cond) if c is not None]
        for cond in conds
    ]


def check_nodes(model: Any, tiles: int) -> None:
    """Checks that no node on the MODEL needs to see the picture as a whole.

    Raises:
        PFStorerError: one does, and there are several tiles.
    """
    functions = model.model_options.get("sampler_post_cfg_function", [])
    names = [getattr(function, "__qualname__", "") for function in functions]
    for node in _WHOLE_PICTURE:
        if tiles > 1 and any(name.startswith(f"{node}.") for name in names):
            raise PFStorerError(
                f"'{node}' compares the picture with what the UNet saw last, which is one tile of "
                f"{tiles}; leave it out, or restore in one tile (a smaller scale or larger "
                "tile_size)."
            )


def check_conditioning(conditioning: Sequence[Any], tiles: int) -> None:
    """Checks before the start that a CONDITIONING can be cut to tiles.

    Args:
        conditioning: list of (tensor, dictionary).
        tiles: how many tiles there will be; one needs no cutting.

    Raises:
        PFStorerError: the sentence says what cannot be cut.
    """
    if tiles > 1:
        for _, options in conditioning:
            _check(options)


def can_be_cut(conds: Conds) -> bool:
    """Whether all conditions can be cut to tiles or items."""
    return not any(_obstacle(c) for cond in conds if cond for c in cond)


def _check(cond: dict[str, Any]) -> None:
    obstacle = _obstacle(cond)
    if obstacle is not None:
        raise PFStorerError(obstacle)


def _obstacle(cond: dict[str, Any]) -> str | None:
    """Says what of a condition cannot be cut."""
    if "gligen" in cond:
        return (
            "GLIGEN places things in the whole picture and cannot be cut into tiles; remove it, or "
            "choose a tile size as large as the picture."
        )
    control = cond.get("control")
    while control is not None:
        # Others may keep state of their own, which a copy would not follow.
        if type(control).__module__ != comfy.controlnet.__name__:
            return (
                f"The ControlNet {type(control).__module__}.{type(control).__name__} of another "
                "custom node cannot be cut into tiles; use ComfyUI's own 'Apply ControlNet', or "
                "choose a tile size as large as the picture."
            )
        if control.global_average_pooling:
            return (
                "A ControlNet that looks at its hint as a whole (shuffle) cannot be cut into "
                "tiles; remove it, or choose a tile size as large as the picture."
            )
        control = control.previous_controlnet
    return None


def _crop(
    cond: dict[str, Any],
    units: Sequence[Unit],
    x_in: Tensor,
    controls: dict[int, Any],
    areas: dict[int, Any],
) -> dict[str, Any] | None:
    _check(cond)
    cropped = dict(cond)
    if "area" in cond:
        inside = _crop_area(cond, units[0], x_in, areas)
        if inside is None:
            return None
        cropped.pop("mask_strength", None)  # it is in the mask now
        cropped["area"], cropped["mask"] = inside
    elif "mask" in cond:
        cropped["mask"] = torch.cat([u.tile.crop(_row(cond["mask"], u.item)) for u in units])
    if cond.get("control") is not None:
        cropped["control"] = _crop_control(cond["control"], units, x_in, controls)
    cropped["model_conds"] = {
        name: _crop_model_cond(model_cond, units, x_in.shape[0])
        for name, model_cond in cond["model_conds"].items()
    }
    return cropped


def _crop_model_cond(model_cond: Any, units: Sequence[Unit], batch_size: int) -> Any:
    if isinstance(model_cond, comfy.conds.CONDConstant):
        return model_cond
    whole: dict[Tile, Any] = {}
    for _, tile in units:
        if tile not in whole:
            area = (*tile.size, tile.y0, tile.x0)
            whole[tile] = model_cond.process_cond(batch_size=batch_size, area=area).cond
    rows = [_items(whole[tile], item) for item, tile in units]
    if isinstance(rows[0], list):
        return model_cond._copy_with([torch.cat(parts) for parts in zip(*rows, strict=True)])
    return model_cond._copy_with(torch.cat(rows))


def _items(processed: Any, item: int) -> Any:
    if isinstance(processed, list):
        return [tensor[item : item + 1] for tensor in processed]
    return processed[item : item + 1]


def _crop_area(
    cond: dict[str, Any], unit: Unit, x_in: Tensor, areas: dict[int, Any]
) -> tuple[tuple[int, ...], Tensor] | None:
    """Returns a condition's area inside a tile as (h, w, y, x), and its mask (1, h, w) of the tile.

    The mask holds the soft edge that the host gives to the whole area, so that it does not depend
    on where tiles end.
    """
    if id(cond) not in areas:
        placed: dict[str, Any] = {"model_conds": {}, "uuid": None}
        placed |= {name: cond[name] for name in ("area", "mask", "mask_strength") if name in cond}
        areas[id(cond)] = comfy.samplers.get_area_and_mult(placed, x_in, None)
    whole = areas[id(cond)]
    height, width, y, x = whole.area
    tile = unit.tile
    y0, y1 = max(y, tile.y0), min(y + height, tile.y1)
    x0, x1 = max(x, tile.x0), min(x + width, tile.x1)
    if y0 >= y1 or x0 >= x1:
        return None
    soft = whole.mult[unit.item : unit.item + 1, 0]  # (1, height, width) of the area
    mask = F.pad(
        soft[:, y0 - y : y1 - y, x0 - x : x1 - x],
        (x0 - tile.x0, tile.x1 - x1, y0 - tile.y0, tile.y1 - y1),
    )  # (1, tile height, tile width)
    return (y1 - y0, x1 - x0, y0 - tile.y0, x0 - tile.x0), mask


def _crop_control(
    control: Any, units: Sequence[Unit], x_in: Tensor, controls: dict[int, Any]
) -> Any:
    if id(control) in controls:
        return controls[id(control)]
    # A shallow copy shares the loaded model and what the host prepared for this sampling, but has
    # its own hint and so leaves that of the original alone.
    cropped = copy.copy(control)
    ratio = control.compression_ratio
    if control.vae is not None:
        ratio *= control.vae.spacial_compression_encode()
    size = x_in.shape[2] * ratio, x_in.shape[3] * ratio

    def cut(hint: Tensor) -> Tensor:
        if hint.shape[-2:] != size:
            method = control.upscale_algorithm
            hint = comfy.utils.common_upscale(hint, size[1], size[0], method, "center")
        return torch.cat([u.tile.scaled(ratio).crop(_row(hint, u.item)) for u in units])

    cropped.cond_hint_original = cut(control.cond_hint_original)
    cropped.extra_concat_orig = [cut(extra) for extra in control.extra_concat_orig]
    cropped.cond_hint = cropped.extra_concat = None  # what the host derives from it
    if control.previous_controlnet is not None:
        previous = _crop_control(control.previous_controlnet, units, x_in, controls)
        cropped.previous_controlnet = previous
    clones = getattr(control, "multigpu_clones", {})  # unknown to older versions
    cropped.multigpu_clones = {
        device: _crop_control(clone, units, x_in, controls) for device, clone in clones.items()
    }
    controls[id(control)] = cropped
    return cropped


def _row(tensor: Tensor, item: int) -> Tensor:
    """Returns the item's row (1, ...) of a tensor that is repeated over the batch."""
    row = item % tensor.shape[0]
    return tensor[row : row + 1]
