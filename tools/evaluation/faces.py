"""Where faces are, found by dlib: boxes, landmarks, windows around a face of a given size."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.resizing import resize_bicubic

SHORT_SIDE = 256  # px; smaller pictures are scaled up before anything is looked for
# Points of the 300-W annotation whose mean is each of `face_crops.POINTS`: both eyes, tip of the
# nose, corners of the mouth
_FIVE = (range(36, 42), range(42, 48), (30,), (48,), (54,))
_BROWS, _CHIN = range(17, 27), 8
# By the rule of thirds the brows lie a third of the way down from the hairline to the chin.
_FACE_PER_BROW_TO_CHIN = 1.5


@dataclass(frozen=True)
class Face:
    """Where a face lies in a picture.

    Attributes:
        box: (2, 2), corners of the detector's box, x and y in px of the picture.
        points: (68, 2), the 300-W landmarks, x and y in px of the picture.
    """

    box: Tensor
    points: Tensor

    def moved(self, scale: float, left: float = 0.0, top: float = 0.0) -> Face:
        """Returns the place in a picture cut off at left and top, and then scaled."""
        # The middle of pixel 0 lies half a pixel inside.
        start = self.points.new_tensor([left, top]) - 0.5
        return Face((self.box - start) * scale - 0.5, (self.points - start) * scale - 0.5)

    def five_points(self) -> Tensor:
        """Returns the points (5, 2) that `face_crops.aligned_face` takes."""
        return torch.stack([self.points[list(part)].mean(0) for part in _FIVE])

    def extent(self) -> tuple[Tensor, float]:
        """Returns the middle (2,) and the height in px of the face from hairline to chin."""
        chin = self.points[_CHIN]
        upwards = (self.points[list(_BROWS)].mean(0) - chin) * _FACE_PER_BROW_TO_CHIN
        return chin + upwards / 2, float(upwards.norm())


class FaceFinder:
    """dlib's frontal face detector and its predictor of 68 landmarks.

    Raises:
        PFStorerError: dlib or its models are not installed.
    """

    def __init__(self) -> None:
        self._dlib = import_dlib()
        self._detect = self._dlib.get_frontal_face_detector()
        path = dlib_model("shape_predictor_68_face_landmarks.dat")
        self._predict = self._dlib.shape_predictor(str(path))

    def find(self, picture: Tensor) -> Face | None:
        """Returns the largest face of a picture (3, H, W) in [0, 1], None where none is found."""
        pixels, scale = dlib_pixels(picture)
        boxes = self._detect(pixels, 0) or self._detect(pixels, 1)
        if not boxes:
            return None
        box = max(boxes, key=lambda found: found.area())
        corners = torch.tensor([[box.left(), box.top()], [box.right(), box.bottom()]])
        return Face(corners.double(), self._points(pixels, box)).moved(1 / scale)

    def landmarks(self, picture: Tensor, face: Face) -> Tensor:
        """Returns the landmarks (68, 2) in px that the predictor finds in a face's box."""
        pixels, scale = dlib_pixels(picture)
        (left, top), (right, bottom) = face.moved(scale).box.round().long().tolist()
        points = self._points(pixels, self._dlib.rectangle(left, top, right, bottom))
        return Face(points, points).moved(1 / scale).points

    def _points(self, pixels: Any, box: Any) -> Tensor:
        found = self._predict(pixels, box).parts()
        return torch.tensor([[point.x, point.y] for point in found], dtype=torch.float64)


def window_of_face(
    photo: Tensor, face: Face, share: float, size: int
) -> tuple[Tensor, Face, float]:
    """Cuts out the square in whose middle the face takes a given share of the height.

    Args:
        photo: (3, H, W) in [0, 1].
        face: in the photo.
        share: height of the face, see `Face.extent`, as a share of the square's side.
        size: side of the result in px.

    Returns:
        The square (3, size, size), filled by reflection where the photo ends; the face in it; and
        the factor by which the photo was scaled.
    """
    middle, height = face.extent()
    side = max(1, round(height / share))
    left, top = (round(float(x) - (side - 1) / 2) for x in middle)
    rows, columns = photo.shape[1:]
    before = max(0, -top), max(0, -left)
    after = max(0, top + side - rows), max(0, left + side - columns)
    padding = ((0, 0), (before[0], after[0]), (before[1], after[1]))
    padded = torch.from_numpy(np.pad(photo.numpy(), padding, mode="symmetric"))
    y, x = top + before[0], left + before[1]
    square = resize_bicubic(padded[None, :, y : y + side, x : x + side], (size, size))[0]
    return square, face.moved(size / side, left, top), size / side


def landmark_distance(
    finder: FaceFinder, images: Tensor, clean: Tensor, faces: Sequence[Face]
) -> Tensor:
    """Returns the mean distance of the landmarks to those of the clean picture, px.

    In both pictures they are looked for in the clean picture's box, so that no face is missed.

    Args:
        finder: of landmarks.
        images, clean: (B, 3, H, W) in [0, 1].
        faces: B places in the clean pictures.

    Returns:
        (B,)
    """
    return torch.stack(
        [
            (finder.landmarks(image, face) - finder.landmarks(truth, face)).norm(dim=1).mean()
            for image, truth, face in zip(images, clean, faces, strict=True)
        ]
    )


def dlib_pixels(picture: Tensor) -> tuple[Any, float]:
    """Returns a picture (3, H, W) in [0, 1] as dlib takes it, uint8 (h, w, 3), and its scale."""
    height, width = picture.shape[1:]
    scale = max(1.0, SHORT_SIDE / min(height, width))
    if scale > 1:
        picture = resize_bicubic(picture[None], (round(height * scale), round(width * scale)))[0]
    pixels = picture.clamp(0, 1).mul(255).round().byte().movedim(0, -1)
    return np.ascontiguousarray(pixels.numpy()), scale


def import_dlib() -> ModuleType:
    """Returns the module dlib.

    Raises:
        PFStorerError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise PFStorerError(
            "Faces are found by dlib, which is not installed; install requirements-dev.txt "
            "(pip install dlib-bin face_recognition_models)."
        ) from error
    return dlib


def dlib_model(name: str) -> Path:
    """Returns a file of the package face_recognition_models.

    Raises:
        PFStorerError: the package is not installed, or another release without this file.
    """
    # Found without importing it: its own code needs pkg_resources, which setuptools dropped.
    found = importlib.util.find_spec("face_recognition_models")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise PFStorerError(
        f"dlib's model {name} is not installed; install requirements-dev.txt "
        "(pip install face_recognition_models)."
    )
