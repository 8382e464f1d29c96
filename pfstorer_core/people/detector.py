"""The bundled head detector: finds heads of all sizes in a picture of any size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import box_iou

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic
from ..weights.described import DescribedKind
from ..weights.networks import with_weights
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .found import FoundHead, in_reading_order
from .network import STRIDE, HeadNetwork, HeadNetworkConfig

HEAD_DETECTOR_PATH = Path(__file__).parents[1] / "assets" / "head_detector.safetensors"
HEAD_DETECTOR_FILE = DescribedKind("pfstorer_head_detector", version=1)
THRESHOLD = 0.45  # of scores; docs/head_detector.md says what it costs
MOST_PIXELS = 8_000_000  # of the largest copy that is searched
_SMALLEST_COPY = 12  # pixels of the longer side
_TILE = 768  # pixels of a tile's side without its margin, a multiple of 8
_MARGIN = 96  # pixels, about half of what one answer depends on; a multiple of 8
_MOST_IN_TILE = 256  # heads
_SIZES = (8.0, 64.0)  # pixels of heads in a copy; others are found in another copy
_MIDDLE_SIZE = 22.0  # of heads: smaller ones are found in the next larger copy, too
_CANDIDATE = 0.1  # smallest score of a find in a copy
_SAME = 0.4  # intersection over union of two finds of one head
_WITHIN = 0.7  # share of a find that lies in another


class _Finds(NamedTuple):
    """N finds in a copy: scores (N,), boxes (N, 4) in pixels of the picture, features (N, C).

    Sizes (N,) are those of the heads in pixels of the copy.
    """

    scores: Tensor
    boxes: Tensor
    features: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class HeadDetector:
    """Finds the heads of a picture; a `found.HeadFinder`.

    The picture is searched at halved sizes, so that every head has a size that the network knows
    in two of them, each in tiles, so that memory does not grow with the picture. The largest copy
    has twice the picture's sides, or the picture's own, and `MOST_PIXELS` at most. The smallest
    head that is found has 22 pixels in it, as the root of its box's area.

    Args:
        network: with its batch norms' statistics, on the device that it shall run on.
        threshold: smallest score of a find, from 0 to 1.
    """

    network: HeadNetwork
    threshold: float = THRESHOLD

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[FoundHead]:
        """Returns the heads of a picture (3, H, W) in [0, 1], in reading order.

        Raises:
            PFStorerError: another shape.
        """
        if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
            raise PFStorerError(
                f"A picture to find people in has the shape {tuple(picture.shape)}; give (3, H, W)."
            )
        height, width = picture.shape[1:]
        found = _agreed([self._search(copy, (height, width)) for copy in _copies(picture)])
        finds = _Finds(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        finds = _picked(finds, finds.scores >= self.threshold)
        finds = _picked(finds, _best(finds))
        if not len(finds.scores):
            return []
        masks = self.network.masks(finds.features).sigmoid().cpu()
        rounded = _inside(finds.boxes, height, width).round().long().tolist()
        heads = []
        for (left, top, right, bottom), mask, score in zip(
            rounded, masks, finds.scores.tolist(), strict=True
        ):
            if right > left and bottom > top:
                heads.append(FoundHead((left, top, right, bottom), mask, score))
        return in_reading_order(heads)

    def _search(self, copy: Tensor, size: tuple[int, int]) -> _Finds:
        """Finds in a copy (3, h, w) of a picture of a size (H, W)."""
        height, width = copy.shape[1:]
        found = [self._search_tile(copy, top, left) for top, left in _tiles(height, width)]
        finds = _Finds(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        factors = finds.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
        return finds._replace(boxes=finds.boxes * factors)

    def _search_tile(self, copy: Tensor, top: int, left: int) -> _Finds:
        """Finds, in pixels of the copy, whose middles lie in a tile."""
        height, width = copy.shape[1:]
        y0, x0 = max(0, top - _MARGIN), max(0, left - _MARGIN)
        y1, x1 = (min(s, a + _TILE + _MARGIN) for s, a in ((height, top), (width, left)))
        part = copy[:, y0:y1, x0:x1].to(next(self.network.parameters()).device)
        inside = torch.cat([part, torch.ones_like(part[:1])])
        padded = F.pad(inside, (0, -(x1 - x0) % 8, 0, -(y1 - y0) % 8))[None]
        maps = self.network(padded.contiguous(memory_format=torch.channels_last))
        scores = maps.scores[0].sigmoid()
        peaks = scores == F.max_pool2d(scores[None], 3, stride=1, padding=1)[0]
        row, column = (peaks & (scores > _CANDIDATE)).nonzero(as_tuple=True)
        best = scores[row, column].topk(min(len(row), _MOST_IN_TILE)).indices
        row, column = row[best], column[best]
        middle = (torch.stack([column, row], 1) + 0.5) * STRIDE
        distances = maps.boxes[0, :, row, column].T  # (N, 4)
        boxes = torch.cat([middle - distances[:, :2], middle + distances[:, 2:]], 1)
        boxes = _inside(boxes + boxes.new_tensor([x0, y0, x0, y0]), height, width)
        sides = boxes[:, 2:] - boxes[:, :2]
        sizes = sides.clamp(min=0).prod(1).sqrt()
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        start = boxes.new_tensor([left, top])
        own = ((centre >= start) & (centre < start + _TILE)).all(1)
        own &= (sizes >= _SIZES[0]) & (sizes <= _SIZES[1])
        features = maps.features[0, :, row, column].T.float()
        return _picked(_Finds(scores[row, column], boxes, features, sizes), own)


def _picked(finds: _Finds, which: Tensor | list[int]) -> _Finds:
    return _Finds(*(values[which] for values in finds))


def _agreed(found: list[_Finds]) -> list[_Finds]:
    """Finds of copies, each twice as large as the next, with scores that two of them agree on.

    A head is of a size to be found in two copies, what only looks like one seldom is. So a score
    becomes the mean of it and of that of the same find in the other copy, 0 if there is none. What
    would need a copy larger than all is no find. The largest heads are believed without another.
    """
    agreed = []
    for k, finds in enumerate(found):
        scores = finds.scores.clone()
        small = finds.sizes < _MIDDLE_SIZE
        for other, concerned in ((k - 1, small), (k + 1, ~small)):
            if other < 0:
                scores = torch.where(concerned, 0.0, scores)
            elif other < len(found):
                shares = box_iou(finds.boxes, found[other].boxes) > _SAME
                theirs = torch.where(shares, found[other].scores, 0.0)
                theirs = F.pad(theirs, (0, 1)).amax(1)
                scores = torch.where(concerned, (finds.scores + theirs) / 2, scores)
        agreed.append(finds._replace(scores=scores))
    return agreed


def _copies(picture: Tensor) -> Iterator[Tensor]:
    """Yields the picture at the sizes that are searched, each half of the one before."""
    height, width = picture.shape[1:]
    area = height * width
    scale = 2.0 if 4 * area <= MOST_PIXELS else min(1.0, (MOST_PIXELS / area) ** 0.5)
    copy = picture.float()
    while True:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        source = picture.float() if scale == 1 else copy
        copy = resize_bicubic(source[None], size)[0]
        yield copy
        scale /= 2
        if max(height, width) * scale < _SMALLEST_COPY:
            return


def _tiles(height: int, width: int) -> list[tuple[int, int]]:
    return [(y, x) for y in range(0, height, _TILE) for x in range(0, width, _TILE)]


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4) cut off at the picture's border."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _best(finds: _Finds) -> list[int]:
    """Returns which finds stay: of several of one head the surest."""
    kept: list[int] = []
    boxes = finds.boxes
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    for k in finds.scores.argsort(descending=True, stable=True).tolist():
        if kept:
            others = boxes[kept]
            shared = torch.minimum(others[:, 2:], boxes[k, 2:]) - torch.maximum(
                others[:, :2], boxes[k, :2]
            )
            both = shared.clamp(min=0).prod(1)
            union = areas[kept] + areas[k] - both
            smaller = areas[kept].clamp(max=float(areas[k]))
            if bool(((both > _SAME * union) | (both > _WITHIN * smaller)).any()):
                continue
        kept.append(k)
    return kept


def load_head_finder(
    path: str | os.PathLike[str] = HEAD_DETECTOR_PATH,
    *,
    device: torch.device | str = "cpu",
    threshold: float = THRESHOLD,
) -> HeadDetector:
    """Loads a head detector.

    Args:
        path: a file that `save_head_detector` wrote.
        device: that it shall run on, in float32.
        threshold: smallest score of a find, from 0 to 1.

    Raises:
        PFStorerError: no file, a damaged one or one of another kind.
    """
    path = Path(path)
    tensors, metadata = read_weights(path)
    subject = f"'{path.name}'"
    config = HEAD_DETECTOR_FILE.read(metadata, subject, _described)
    if config is None:
        raise PFStorerError(
            f"'{path.name}' holds no head detector; choose one that "
            "scripts/train_detector.py wrote."
        )
    network = with_weights(lambda: HeadNetwork(config), tensors, subject, "head detector")
    network = _without_norms(network.eval().requires_grad_(False))
    return HeadDetector(network.to(device), threshold)


def save_head_detector(network: HeadNetwork, path: str | os.PathLike[str]) -> None:
    """Writes a network as `load_head_finder` reads it, in half precision.

    Raises:
        PFStorerError: see `writing.write_safetensors`.
    """
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    described = HEAD_DETECTOR_FILE.metadata({"network": network.config.to_dict()})
    write_safetensors(path, weights, described)


def _described(values: dict[str, Any]) -> HeadNetworkConfig:
    return HeadNetworkConfig.from_dict(values["network"])


def _without_norms(network: HeadNetwork) -> HeadNetwork:
    """Takes batch norms into the convolutions before them."""
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            conv, norm = module[0], module[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network
