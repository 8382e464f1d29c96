"""Masks and gammas of identities on their way to the UNet.

They travel as model conditions, so that ComfyUI itself repeats them over the batch, crops them to a
condition's area and moves them between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.conds
import comfy.utils
from torch import Tensor

from ...areas import area_mean
from ...tiling.grid import Tile
from ..conditions import Conds, with_model_conds
from .applied import AppliedIdentity
from .lq import items_of

Shape = tuple[int, int, int, int]
MASK_COND = "pfstorer_mask_"  # with the identity's number: a model condition
GAMMA_COND = "pfstorer_gamma_"  # likewise
TEXT_COND = "pfstorer_text_length"  # a model condition as well


def fitted_mask(mask: Tensor, shape: Shape) -> Tensor:
    """Returns masks (M, h, w) scaled and repeated to (B, 1, H, W) of a shape (B, C, H, W)."""
    mask = area_mean(mask[:, None].cpu(), shape[2:])  # (M, 1, H, W)
    fitted: Tensor = comfy.utils.repeat_to_batch_size(mask, shape[0])  # (B, 1, H, W)
    return fitted


def touched_identities(conds: Conds, item: int, tile: Tile) -> tuple[bool, ...]:
    """Tells for each mask that `IdentityMasks` gave whether it is above zero in a tile of an item.

    Args:
        conds: conditions of the whole latent.
        item: number of the item in the batch.
        tile: window of the latent.
    """
    first = next((c for cond in conds if cond for c in cond), None)
    given = first["model_conds"] if first else {}
    masks = [x.cond for name, x in given.items() if name.startswith(MASK_COND)]
    return tuple(bool(tile.crop(mask[item]).any()) for mask in masks)


class IdentityMasks:
    """`CALC_COND_BATCH` wrapper that gives every condition of a step the identities' masks.

    And their gammas where these differ between pictures, as maps, which are cut like masks. To run
    prompts of several lengths at once, ComfyUI repeats the short ones, which the UNet's attention
    does not notice; beside an identity's tokens a repeated text would count for more. So it is kept
    from doing so.
    """

    def __init__(self, identities: Sequence[AppliedIdentity]) -> None:
        self.masks = {f"{MASK_COND}{k}": identity.mask for k, identity in enumerate(identities)}
        self.gammas = {f"{GAMMA_COND}{k}": x.gammas for k, x in enumerate(identities)}

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
        """Runs the conditions of one step, x_in: (B, C, h, w)."""
        added = {}
        for key, mask in self.masks.items():
            if mask is not None:
                mask = items_of(model_options, mask).to(x_in)[:, None]  # (M, 1, H, W)
                mask = area_mean(mask, (x_in.shape[2], x_in.shape[3]))  # (M, 1, h, w)
                mask = comfy.utils.repeat_to_batch_size(mask, x_in.shape[0])
                added[key] = comfy.conds.CONDNoiseShape(mask)
        for key, gammas in self.gammas.items():
            if gammas is not None:
                gammas = items_of(model_options, gammas).to(x_in)
                gammas = comfy.utils.repeat_to_batch_size(gammas, x_in.shape[0])  # (B,)
                gammas = gammas[:, None, None, None].expand(-1, 1, *x_in.shape[2:])  # (B, 1, h, w)
                added[key] = comfy.conds.CONDNoiseShape(gammas)
        if added:
            conds = with_model_conds(conds, added)
        if self.masks:
            conds = [cond and [_with_text_length(c) for c in cond] for cond in conds]
        return executor(model, conds, x_in, timestep, model_options, **kwargs)


def _with_text_length(condition: dict[str, Any]) -> dict[str, Any]:
    given = condition.get("model_conds", {})
    text = given.get("c_crossattn")
    if text is None:
        return condition
    length = comfy.conds.CONDConstant(text.cond.shape[1])
    return {**condition, "model_conds": {**given, TEXT_COND: length}}
