"""Finds the people in pictures, with whatever there is to find them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...errors import PFStorerError
from ...people.ellipses import head_of_face
from ...people.found import FoundHead, HeadFinder, in_reading_order
from ...people.given import boxes_by_picture, heads_of_boxes, heads_of_masks, heads_of_segs
from ...people.people import FoundPeople
from ..images import split_alpha
from ..measure.faces import MODEL_FOLDER, face_landmarks, five_points

AUTOMATIC, BUNDLED, MEDIAPIPE = "automatic", "bundled", "MediaPipe"
DETECTORS = (AUTOMATIC, BUNDLED, MEDIAPIPE)
_SAME = 0.4  # of the smaller box that two heads share if they are one


@dataclass(frozen=True)
class GivenHeads:
    """What other nodes found, or the user painted; the detector is not used then.

    Args:
        masks: (M, h, w) in [0, 1], see `given.heads_of_masks`; of several pictures one for each.
        boxes: BOUNDING_BOX of ComfyUI, see `given.boxes_by_picture`.
        segs: SEGS of one picture, see `given.heads_of_segs`.
    """

    masks: Tensor | None = None
    boxes: Any = None
    segs: Any = None

    def __bool__(self) -> bool:
        return any(x is not None for x in (self.masks, self.boxes, self.segs))


def find_people(
    image: Tensor, detector: str = AUTOMATIC, given: GivenHeads | None = None
) -> FoundPeople:
    """Finds the heads of all people in each picture.

    Args:
        image: (B, H, W, 1 | 3 | 4) in [0, 1].
        detector: one of `DETECTORS`. "automatic" is the bundled one and, where its model is there,
            MediaPipe's, for the faces that the bundled one does not find.
        given: heads that are known already, which the detector is then not asked for.

    Raises:
        PFStorerError: an input of wrong shape or value, or a detector that is not there.
    """
    rgb, _ = split_alpha(image)
    size = rgb.shape[2], rgb.shape[3]
    if given:
        heads, finder = _given(given, len(rgb), size), "given"
    else:
        find, finder = _finder(detector)
        heads = []
        for picture in rgb:
            mm.throw_exception_if_processing_interrupted()
            heads.append(find(picture))
    return FoundPeople(tuple(tuple(in_reading_order(x)) for x in heads), size, finder)


def _given(given: GivenHeads, pictures: int, size: tuple[int, int]) -> list[list[FoundHead]]:
    heads: list[list[FoundHead]] = [[] for _ in range(pictures)]
    if given.masks is not None:
        if pictures > 1 and len(given.masks) != pictures:
            raise PFStorerError(
                f"There are {len(given.masks)} masks of heads for {pictures} image(s); give one "
                "mask for each image with all its heads painted apart, or one image."
            )
        parts = given.masks.split(1) if pictures > 1 else [given.masks]
        for found, masks in zip(heads, parts, strict=True):
            found += heads_of_masks(masks, size)
    if given.boxes is not None:
        for found, boxes in zip(heads, boxes_by_picture(given.boxes, pictures), strict=True):
            found += heads_of_boxes(boxes, size)
    if given.segs is not None:
        if pictures > 1:
            raise PFStorerError(
                f"SEGS are of one picture, but there are {pictures} images; give one at a time."
            )
        heads[0] += heads_of_segs(given.segs, size)
    return heads


def _finder(detector: str) -> tuple[HeadFinder, str]:
    """Returns what finds heads, and its name for the user."""
    if detector not in DETECTORS:
        raise PFStorerError(f"detector is '{detector}'; choose one of {', '.join(DETECTORS)}.")
    mediapipe = None if detector == BUNDLED else mediapipe_finder()
    if detector == MEDIAPIPE and mediapipe is None:
        raise PFStorerError(
            "MediaPipe cannot be used: put ComfyUI's MediaPipe face model into "
            f"models/{MODEL_FOLDER}, or choose '{AUTOMATIC}'."
        )
    if detector == MEDIAPIPE and mediapipe is not None:
        return mediapipe, MEDIAPIPE
    from ...people.detector import load_head_finder

    bundled, name = load_head_finder(), f"{BUNDLED} detector"
    if mediapipe is None:
        return bundled, name
    both: Sequence[HeadFinder] = (bundled, mediapipe)  # whose masks are better first
    return lambda picture: _joined([find(picture) for find in both]), f"{name} and {MEDIAPIPE}"


def _joined(found: Sequence[Sequence[FoundHead]]) -> list[FoundHead]:
    """Returns the heads of the first finder, and those of others that are not among them."""
    heads: list[FoundHead] = []
    for some in found:
        heads += [x for x in some if all(_shared(x, head) < _SAME for head in heads)]
    return heads


def _shared(one: FoundHead, other: FoundHead) -> float:
    """Returns the share of the smaller box that two heads have in common."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    areas = [(x.box[2] - x.box[0]) * (x.box[3] - x.box[1]) for x in (one, other)]
    return max(0, width) * max(0, height) / min(areas)


def mediapipe_finder() -> HeadFinder | None:
    """Returns a finder that asks ComfyUI's MediaPipe nodes; None where they or their model lack."""
    find_landmarks = face_landmarks()
    if find_landmarks is None:
        return None

    def find(picture: Tensor) -> list[FoundHead]:
        size = picture.shape[1], picture.shape[2]
        heads = []
        for face in find_landmarks(picture):
            points = five_points(face.points)
            up = points[:2].mean(0) - points[3:].mean(0)  # from the mouth to the eyes
            towards = float(up[0]), float(up[1])
            heads.append(head_of_face(face.points, size, min(max(face.score, 0), 1), towards))
        return [head for head in heads if head is not None]

    return find
