"""Training of the head detector: what its network shall say of scenes, and the loss."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from ..people.network import STRIDE, HeadMaps, HeadNetwork
from .head_scenes import FOUND, IGNORED, Scenes
from .loop import Objective

_NARROW = 9.0  # a head's size by the deviation of the bump around its middle
_NEAR = 0.5  # of the bump, where boxes are learned
_BOX, _MASK = 1.0, 1.0  # weights of the losses beside that of the scores


def head_objective(scenes: Scenes, batch: int) -> Objective:
    """Scores, boxes and masks of scenes, drawn at random and mirrored in half of the cases.

    Args:
        scenes: see `head_scenes.make_scenes`.
        batch: scenes per step.

    Source: the loss of scores is CenterNet's (arXiv 1904.07850), equation 1; boxes by the
        generalised IoU (arXiv 1902.09630).
    """

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(len(scenes.kinds), (batch,), generator=generator)
        part = mirrored(Scenes(*(values[chosen] for values in scenes)), generator)
        return head_loss(model, part)

    return objective


def head_loss(model: nn.Module, scenes: Scenes) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of scenes, and its parts."""
    pictures = network_input(scenes)
    maps: HeadMaps = model(pictures)
    bumps, owners = targets(scenes, maps.scores.shape[-2:])
    asked = ~_ignored_cells(scenes, maps.scores.shape[-2:])
    scores = _score_loss(maps.scores, bumps, asked)

    item, row, column = (bumps > _NEAR).nonzero(as_tuple=True)
    owner = owners[item, row, column]
    truth = scenes.boxes[item, owner]  # (N, 4)
    boxes = cell_boxes(maps.boxes[item, :, row, column], row, column)
    box = generalized_box_iou_loss(boxes, truth, reduction="sum") / max(len(truth), 1)

    item, head = (scenes.kinds == FOUND).nonzero(as_tuple=True)
    row, column = middles(scenes.boxes[item, head], maps.scores.shape[-2:])
    network = cast(HeadNetwork, getattr(model, "module", model))  # in several processes
    logits = network.masks(maps.features[item, :, row, column].float())
    wanted = scenes.masks[item, head].float() / 255
    mask = F.binary_cross_entropy_with_logits(logits, wanted) if len(wanted) else scores * 0
    loss = scores + _BOX * box + _MASK * mask
    return loss, {"scores": scores.detach(), "boxes": box.detach(), "masks": mask.detach()}


def network_input(scenes: Scenes) -> Tensor:
    """Returns pictures and where they are: (B, 4, SIZE, SIZE)."""
    size = scenes.pictures.shape[-1]
    left, top, right, bottom = scenes.extents.long().unbind(1)
    at = torch.arange(size)
    across = (at >= left[:, None]) & (at < right[:, None])  # (B, SIZE)
    along = (at >= top[:, None]) & (at < bottom[:, None])
    inside = along[:, None, :, None] & across[:, None, None, :]  # (B, 1, SIZE, SIZE)
    pictures = torch.cat([scenes.pictures.float() / 255, inside.float()], 1)
    return pictures.contiguous(memory_format=torch.channels_last)


def targets(scenes: Scenes, cells: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    """Returns what scores shall be, bumps (B, h, w) of 1 at middles, and whose they are."""
    boxes = scenes.boxes  # (B, M, 4)
    row, column = middles(boxes, cells)  # (B, M)
    sigma = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=1) / STRIDE / _NARROW).clamp(min=0.4)
    y = torch.arange(cells[0]) - row[..., None]  # (B, M, h)
    x = torch.arange(cells[1]) - column[..., None]  # (B, M, w)
    along, across = (-0.5 * (d / sigma[..., k, None]) ** 2 for k, d in ((1, y), (0, x)))
    bumps = (along[..., :, None] + across[..., None, :]).exp()  # (B, M, h, w)
    bumps = bumps * (scenes.kinds == FOUND)[..., None, None]
    return bumps.max(1)


def middles(boxes: Tensor, cells: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    """Returns row and column of the cells in which the middles of boxes (..., 4) are."""
    middle = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE).long()
    return middle[..., 1].clamp(0, cells[0] - 1), middle[..., 0].clamp(0, cells[1] - 1)


def cell_boxes(distances: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Returns the boxes (N, 4) of distances (N, 4) from the middles of N cells."""
    middle = (torch.stack([column, row], 1) + 0.5) * STRIDE  # (N, 2)
    return torch.cat([middle - distances[:, :2], middle + distances[:, 2:]], 1)


def _ignored_cells(scenes: Scenes, cells: torch.Size) -> Tensor:
    """(B, h, w): where the middle of a head that is not asked for may be."""
    boxes = scenes.boxes / STRIDE
    y = torch.arange(cells[0]) + 0.5
    x = torch.arange(cells[1]) + 0.5
    along = (y >= boxes[..., 1, None]) & (y <= boxes[..., 3, None])  # (B, M, h)
    across = (x >= boxes[..., 0, None]) & (x <= boxes[..., 2, None])
    within = along[..., :, None] & across[..., None, :]
    ignored = (within & (scenes.kinds == IGNORED)[..., None, None]).any(1)
    found = (within & (scenes.kinds == FOUND)[..., None, None]).any(1)
    return ignored & ~found


def _score_loss(logits: Tensor, bumps: Tensor, asked: Tensor) -> Tensor:
    """The focal loss of points with bumps around them, per head."""
    likely = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    at = bumps >= 0.999
    hits = (1 - likely) ** 2 * likely.log()
    others = (1 - bumps) ** 4 * likely**2 * (1 - likely).log()
    loss = -torch.where(at, hits, others) * asked
    return loss.sum() / at.sum().clamp(min=1)


def mirrored(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Mirrors half of the scenes."""
    size = scenes.pictures.shape[-1]
    flip = torch.rand(len(scenes.kinds), generator=generator) < 0.5
    pictures = torch.where(flip[:, None, None, None], scenes.pictures.flip(-1), scenes.pictures)
    masks = torch.where(flip[:, None, None, None], scenes.masks.flip(-1), scenes.masks)

    def turned(boxes: Tensor) -> Tensor:
        left, top, right, bottom = boxes.unbind(-1)
        return torch.stack([size - right, top, size - left, bottom], -1)

    extents = torch.where(flip[:, None], turned(scenes.extents), scenes.extents)
    boxes = torch.where(flip[:, None, None], turned(scenes.boxes), scenes.boxes)
    return Scenes(pictures, extents, boxes, scenes.kinds, masks)


class Statistics:
    """The statistics of a network's batch norms, to be kept in a training's state.

    Args:
        network: whose.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the statistics by name."""
        return dict(self._network.named_buffers())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` returned."""
        for name, buffer in self._network.named_buffers():
            buffer.copy_(state[name])
