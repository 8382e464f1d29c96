"""Face recognition networks that this plugin did not train, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pfstorer_core.errors import PFStorerError, first_line
from pfstorer_core.measures.face_crops import SIDE, aligned_face
from pfstorer_core.measures.similarity import IdentityEmbedding, load_embedding
from pfstorer_core.pictures.resizing import resize_bicubic

from .faces import Face, dlib_model, dlib_pixels, import_dlib

DLIB = "dlib"


class Recognition(Protocol):
    """Maps faces to points on the unit sphere, near to those of the same person.

    Attributes:
        name: short, for the columns of tables.
        crop: in words, what of a picture it sees.
        needs_faces: whether it wants to know where the faces are.
    """

    name: str
    crop: str
    needs_faces: bool

    def embed(self, images: Tensor, faces: Sequence[Face]) -> Tensor:
        """Returns one unit-length row per picture.

        Args:
            images: (B, 3, H, W) in [0, 1].
            faces: B places; whatever where none are needed.

        Returns:
            (B, D) float32 on the CPU.
        """
        ...


class WholePictures:
    """An embedding that sees whole pictures, as that of drawn portraits does.

    Args:
        name: see `Recognition`.
        embedding: of pictures.
    """

    crop = "whole pictures"
    needs_faces = False

    def __init__(self, name: str, embedding: IdentityEmbedding):
        self.name, self._embedding = name, embedding

    def embed(self, images: Tensor, faces: Sequence[Face]) -> Tensor:
        """See `Recognition.embed`."""
        return self._embedding.embed(images)


class AlignedFaces:
    """An embedding of faces that are aligned by five points to the places of ArcFace's training.

    Args:
        name: see `Recognition`.
        embedding: of crops (B, 3, 112, 112).
    """

    crop = f"faces of {SIDE} px aligned by five points"
    needs_faces = True

    def __init__(self, name: str, embedding: IdentityEmbedding):
        self.name, self._embedding = name, embedding

    def embed(self, images: Tensor, faces: Sequence[Face]) -> Tensor:
        """See `Recognition.embed`."""
        crops = [aligned_face(x, f.five_points()) for x, f in zip(images, faces, strict=True)]
        return self._embedding.embed(torch.stack(crops))


class DlibFaces:
    """dlib's face recognition network.

    Its rows are made unit-length like all others, so its cosines are all near 1: a distance of 0.6,
    dlib's own limit for the same person, is a cosine of about 0.91.

    Raises:
        PFStorerError: dlib or its models are not installed.
    """

    name = DLIB
    crop = "faces of 150 px aligned by 68 points"
    needs_faces = True

    def __init__(self) -> None:
        self._dlib = import_dlib()
        path = dlib_model("dlib_face_recognition_resnet_model_v1.dat")
        self._network = self._dlib.face_recognition_model_v1(str(path))

    def embed(self, images: Tensor, faces: Sequence[Face]) -> Tensor:
        """See `Recognition.embed`."""
        rows = [self._row(image, face) for image, face in zip(images, faces, strict=True)]
        return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)

    def _row(self, image: Tensor, face: Face) -> list[float]:
        pixels, scale = dlib_pixels(image)
        place = face.moved(scale)
        corners = place.box.round().long().flatten().tolist()
        points = [self._dlib.point(x, y) for x, y in place.points.round().long().tolist()]
        shape = self._dlib.full_object_detection(self._dlib.rectangle(*corners), points)
        return list(self._network.compute_face_descriptor(pixels, shape))


class TFLiteEmbedding:
    """Embedding by a TensorFlow Lite file such as MobileFaceNet's, on one thread of the CPU.

    The network sees (x - 127.5) / 128 of RGB values x in [0, 255], channels last.

    Args:
        path: the file.

    Raises:
        PFStorerError: ai-edge-litert is not installed, or the file holds no such network.
    """

    def __init__(self, path: Path):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise PFStorerError(
                f"'{path.name}' needs the package ai-edge-litert, which is not installed; install "
                "requirements-dev.txt."
            ) from error
        if not path.is_file():
            raise PFStorerError(f"'{path}' is not a file; check the name and the folder.")
        try:
            self._network = Interpreter(str(path), num_threads=1)
            self._network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise PFStorerError(
                f"'{path.name}' is damaged or no TensorFlow Lite network ({first_line(error)}); "
                "download or copy it again."
            ) from error
        inputs, outputs = self._network.get_input_details(), self._network.get_output_details()
        shape = tuple(int(side) for side in inputs[0]["shape"])
        kinds = {part["dtype"] for part in (*inputs, *outputs)}
        if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or kinds != {np.float32}:
            raise PFStorerError(
                f"'{path.name}' takes {len(inputs)} inputs, the first of {shape}; expected one of "
                "(B, 112, 112, 3) float32, so choose a face recognition network such as "
                "MobileFaceNet."
            )
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        self._batch, self._size = shape[0], (shape[1], shape[2])

    def embed(self, images: Tensor) -> Tensor:
        """See `similarity.IdentityEmbedding.embed`; the pictures are face crops."""
        values = (resize_bicubic(images.float(), self._size) * 255 - 127.5) / 128
        rows = [self._run(part) for part in values.movedim(1, -1).split(self._batch)]
        return F.normalize(torch.cat(rows), dim=1)  # (B, D)

    def _run(self, part: Tensor) -> Tensor:
        full = np.zeros((self._batch, *self._size, 3), np.float32)  # the file fixes the batch
        full[: len(part)] = part.numpy()
        self._network.set_tensor(self._input, full)
        self._network.invoke()
        found: Any = self._network.get_tensor(self._output)
        return torch.from_numpy(found.reshape(self._batch, -1)[: len(part)].copy())


def load_recognition(network: str | None = None) -> Recognition:
    """Loads a network to judge by.

    Args:
        network: MobileFaceNet's or another `.tflite` file, an ArcFace `.onnx` file, a
            `.safetensors` file of this plugin, or "dlib". None is the plugin's own embedding of
            drawn portraits, whose figures mean nothing for photos.

    Raises:
        PFStorerError: no file, a damaged one or one of another kind, or a package is missing.
    """
    if network is None:
        return WholePictures("mini embedding", load_embedding())
    if network == DLIB:
        return DlibFaces()
    path = Path(network)
    if path.suffix.lower() == ".tflite":
        return AlignedFaces(path.stem, TFLiteEmbedding(path))
    if path.suffix.lower() == ".onnx":
        return AlignedFaces(path.stem, load_embedding(path))
    return WholePictures(path.stem, load_embedding(path))
