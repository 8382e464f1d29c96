"""Finding faces with ComfyUI's own MediaPipe nodes, where they and their model are there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import safetensors
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MODEL_FOLDER = "detection"
DETECTORS = ("detector_short.", "detector_full.")  # what the keys of MediaPipe's model start with
CONFIDENCE = 0.5  # the node's own default
# MediaPipe's landmarks whose mean is each of `face_crops.POINTS`: corners of both eyes, tip of the
# nose, corners of the mouth
POINTS = ((33, 133), (362, 263), (1,), (61,), (291,))


def face_finder() -> Callable[[Tensor], int] | None:
    """Returns a function that counts the faces of a photo (3, H, W) in [0, 1].

    Returns:
        None where there is no `face_points`.
    """
    find_points = face_points()
    if find_points is None:
        return None
    return lambda photo: len(find_points(photo))


def face_points() -> Callable[[Tensor], list[Tensor]] | None:
    """Returns a function that finds the faces of a photo (3, H, W) in [0, 1].

    Returns:
        It gives the points (5, 2) of each face as `face_crops.aligned_face` takes them, the largest
        face first. None where there is no `face_landmarks`.
    """
    find_landmarks = face_landmarks()
    if find_landmarks is None:
        return None

    def find_points(photo: Tensor) -> list[Tensor]:
        faces = sorted((face.points for face in find_landmarks(photo)), key=_area, reverse=True)
        return [five_points(face) for face in faces]

    return find_points


def five_points(landmarks: Tensor) -> Tensor:
    """Returns the points (5, 2) of MediaPipe's landmarks (478, 2) that `face_crops` wants."""
    return torch.stack([landmarks[list(part)].mean(0) for part in POINTS])


@dataclass(frozen=True)
class FaceLandmarks:
    """MediaPipe's landmarks of one face.

    Args:
        points: (478, 2), x and y in pixels of the photo.
        score: in [0, 1], how sure the detector is.
    """

    points: Tensor
    score: float


def face_landmarks() -> Callable[[Tensor], list[FaceLandmarks]] | None:
    """Returns a function that finds the faces of a photo (3, H, W) in [0, 1].

    Returns:
        None where this ComfyUI has no such nodes or their model does not lie in its folder
        `models/detection`. Nothing is downloaded.
    """
    try:
        from comfy_extras.nodes_mediapipe import (
            LoadMediaPipeFaceLandmarker,
            MediaPipeFaceLandmarker,
        )
    except ImportError:  # an older ComfyUI
        return None
    name = _model_name()
    if name is None:
        return None

    def find_landmarks(photo: Tensor) -> list[FaceLandmarks]:
        # ComfyUI moves weights about in place, which inference mode alone allows at any time.
        with torch.inference_mode():
            landmarks = MediaPipeFaceLandmarker.execute(
                face_detection_model=detector,
                image=photo.detach().float().movedim(0, -1)[None],  # (1, H, W, 3)
                detector_variant="both",
                num_faces=0,  # no limit
                min_confidence=CONFIDENCE,
                missing_frame_fallback="empty",
            ).args[0]
        return [
            # tensors of their own, which may take part in anything
            FaceLandmarks(torch.as_tensor(face["landmarks_xy"]), float(face["score"]))
            for face in landmarks["frames"][0]
        ]

    try:
        with torch.inference_mode():
            detector = LoadMediaPipeFaceLandmarker.execute(model_name=name).args[0]
        find_landmarks(torch.zeros(3, 64, 64))
    # A check that is only a help must not stop a training, however the nodes may change.
    except Exception as error:
        logger.warning("Faces are not looked for: '%s' cannot be used (%r)", name, error)
        return None
    return find_landmarks


def _area(points: Tensor) -> float:
    """Returns the area of the box around points (N, 2)."""
    return float((points.amax(0) - points.amin(0)).prod())


def _model_name() -> str | None:
    """Returns the first file of the folder that holds MediaPipe's face detectors."""
    for name in folder_paths.get_filename_list(MODEL_FOLDER):
        path = folder_paths.get_full_path(MODEL_FOLDER, name)
        if path is None or Path(path).suffix != ".safetensors":
            continue
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                keys = list(file.keys())
        except (safetensors.SafetensorError, OSError) as error:
            logger.debug("'%s' was passed over: %s", name, error)
            continue
        if all(any(key.startswith(prefix) for key in keys) for prefix in DETECTORS):
            return str(name)
    return None
