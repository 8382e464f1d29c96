"""Heads that the user or other nodes found: masks, boxes, SEGS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PFStorerError
from ..pictures.resizing import resize_bicubic
from ..pictures.values import unit_range
from .ellipses import head_of_box, head_of_face_box
from .found import FoundHead

Size = tuple[int, int]  # height, width
_PAINTED = 0.1  # of a mask: what is less is nobody's
_SPECK = 0.02  # of the area of the largest part of a mask
_FACE = "face"


def heads_of_masks(masks: Tensor, size: Size) -> list[FoundHead]:
    """Returns one head for each mask, or for each part of a single mask.

    So several people may be painted into one mask, apart from each other.

    Args:
        masks: (M, h, w) in [0, 1]; empty ones are nobody.
        size: (height, width) of the picture in pixels.

    Raises:
        PFStorerError: another shape, or values that are no mask's.
    """
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3 or not masks.numel():
        raise PFStorerError(
            f"The masks have the shape {tuple(masks.shape)}; expected (heads, height, width)."
        )
    masks = resize_bicubic(unit_range(masks[:, None].float().cpu(), "The mask"), size)[:, 0]
    parts = _parts(masks[0]) if len(masks) == 1 else masks
    return [head for part in parts if (head := _head_of_mask(part)) is not None]


def _parts(mask: Tensor) -> list[Tensor]:
    """Returns the parts of a mask (H, W) that do not touch, but for specks."""
    import scipy.ndimage

    numbers, count = scipy.ndimage.label((mask > _PAINTED).numpy())
    parts = [mask * torch.from_numpy(numbers == k) for k in range(1, count + 1)]
    largest = max((float(part.sum()) for part in parts), default=0.0)
    return [part for part in parts if float(part.sum()) >= _SPECK * largest]


def _head_of_mask(mask: Tensor, score: float = 1.0) -> FoundHead | None:
    """Returns the head of a mask (H, W) of the picture's size; None of an empty one."""
    places = (mask > _PAINTED).nonzero()
    if not len(places):
        return None
    (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    return FoundHead((left, top, right, bottom), mask[top:bottom, left:right].clone(), score)


def boxes_by_picture(boxes: Any, pictures: int) -> list[list[Any]]:
    """Returns the boxes of each picture from ComfyUI's BOUNDING_BOX in any of its forms.

    Args:
        boxes: one box, a list of those of one picture, or a list of such lists. Each is a dict of
            x, y, width and height in pixels, and of label and score where they are known.
        pictures: how many there are.

    Raises:
        PFStorerError: no boxes, or those of another number of pictures.
    """
    given = [boxes] if isinstance(boxes, dict) else boxes
    if not isinstance(given, (list, tuple)):
        raise PFStorerError(
            f"boxes is of the type {type(boxes).__name__}; connect an output of the type "
            "BOUNDING_BOX."
        )
    by_picture = list(given) if any(isinstance(x, (list, tuple)) for x in given) else [list(given)]
    if len(by_picture) != pictures:
        raise PFStorerError(
            f"There are boxes of {len(by_picture)} pictures for {pictures} image(s); find the "
            "boxes in the same images."
        )
    return by_picture


def heads_of_boxes(boxes: Iterable[Any], size: Size) -> list[FoundHead]:
    """Returns a head for each box of one picture.

    A box whose label has the word "face" is that of a face, to which hair is added; any other is
    that of a head.

    Args:
        boxes: see `boxes_by_picture`.
        size: (height, width) of the picture in pixels.

    Raises:
        PFStorerError: what is no box.
    """
    heads = []
    for box in boxes:
        try:
            x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))
            label, score = str(box.get("label", "")), float(box.get("score", 1.0))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise PFStorerError(
                f"A box is {str(box)[:100]}; expected numbers x, y, width and height in pixels."
            ) from error
        heads.append(_of_box((x, y, x + width, y + height), label, size, score))
    return [head for head in heads if head is not None]


def heads_of_segs(segs: Any, size: Size) -> list[FoundHead]:
    """Returns a head for each of the SEGS of other packs, such as Impact Pack's.

    Those whose label has the word "face" are faces, to which hair is added; of others the mask is
    taken as it is.

    Args:
        segs: ((height, width), parts), each part with `crop_region` and `bbox` (left, top, right,
            bottom), `cropped_mask` (h, w) of the region, `confidence` and `label`.
        size: (height, width) of the picture in pixels; SEGS of another size are scaled to it.

    Raises:
        PFStorerError: what are no SEGS.
    """
    try:
        (height, width), parts = segs[0][:2], segs[1]
        scale = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
        found = [_of_seg(part, scale, size) for part in parts]
    except (TypeError, IndexError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, PFStorerError):
            raise
        raise PFStorerError(
            "The SEGS have another form than Impact Pack's; connect what a SEGS detector gives."
        ) from error
    return [head for head in found if head is not None]


def _of_seg(seg: Any, scale: Tensor, size: Size) -> FoundHead | None:
    """Returns the head of one SEG; `scale` (4,) turns its boxes into those of the picture."""
    region, box = (
        (torch.as_tensor([float(x) for x in corners], dtype=torch.float64) * scale).tolist()
        for corners in (seg.crop_region, seg.bbox)
    )
    score = 1.0 if seg.confidence is None else float(torch.as_tensor(seg.confidence).max())
    label = str(seg.label or "")
    if _FACE in label.lower() or seg.cropped_mask is None:
        return _of_box((box[0], box[1], box[2], box[3]), label, size, score)
    mask = torch.as_tensor(seg.cropped_mask).float()
    mask = mask.reshape(mask.shape[-2:])
    if float(mask.max()) > 1.0:  # as bytes
        mask = mask / 255
    left, top, right, bottom = (round(x) for x in region)
    whole = torch.zeros(size)
    mask = resize_bicubic(mask[None, None], (bottom - top, right - left))[0, 0]
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size[1], right), min(size[0], bottom)
    whole[y0:y1, x0:x1] = mask[y0 - top : y1 - top, x0 - left : x1 - left]
    return _head_of_mask(whole, min(max(score, 0.0), 1.0))


def _of_box(box: Sequence[float], label: str, size: Size, score: float) -> FoundHead | None:
    left, top, right, bottom = box
    make = head_of_face_box if _FACE in label.lower() else head_of_box
    return make((left, top, right, bottom), size, min(max(score, 0.0), 1.0))
