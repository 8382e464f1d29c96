"""Identity similarity: how alike the persons of pictures are, judged by an embedding network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PFStorerError, first_line
from ..pictures.resizing import resize_bicubic
from ..pictures.values import unit_range
from ..weights.described import DescribedKind
from ..weights.networks import with_weights
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .embedding import EmbeddingConfig, EmbeddingNetwork

MINI_EMBEDDING_PATH = Path(__file__).parents[1] / "assets" / "mini_embedding.safetensors"
EMBEDDING_FILE = DescribedKind("pfstorer_embedding", version=1)
_BATCH = 32  # pictures that are embedded at once
_ARCFACE_SIZE = 112  # px


class IdentityEmbedding(Protocol):
    """Maps pictures to points on the unit sphere, near to those of the same person."""

    def embed(self, images: Tensor) -> Tensor:
        """Returns one unit-length row per picture.

        Args:
            images: (B, 3, H, W) in [0, 1]; any size, the whole picture is resized.

        Returns:
            (B, D) float32 on the CPU.

        Raises:
            PFStorerError: another shape or range.
        """
        ...


class NetworkEmbedding:
    """Embedding by an `EmbeddingNetwork`, computed in float32 on the CPU.

    Args:
        network: moved to the CPU and float32, and frozen.
    """

    def __init__(self, network: EmbeddingNetwork) -> None:
        self.network = network.to("cpu", torch.float32).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """See `IdentityEmbedding.embed`."""
        side = self.network.config.size
        images = _prepared(images, (side, side))
        return torch.cat([self.network(part) for part in images.split(_BATCH)])


class OnnxEmbedding:
    """Embedding by an ArcFace-like ONNX file, run by onnxruntime on the CPU.

    The network sees (x - 127.5) / 127.5 of RGB values x in [0, 255], in the size that the file
    states, else 112 x 112. Such networks were trained on aligned face crops: square, eyes level,
    the face filling the picture. Cut the faces out before; the whole picture is resized here.

    Args:
        path: the file.

    Raises:
        PFStorerError: onnxruntime is not installed, or the file holds no such network.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise PFStorerError(
                f"'{path.name}' needs the package onnxruntime, which is not installed; install it "
                "in ComfyUI's environment (pip install onnxruntime)."
            ) from error
        if not path.is_file():
            raise PFStorerError(f"'{path}' is not a file; check the name and the folder.")
        self._name = path.name
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise PFStorerError(
                f"'{path.name}' is damaged or no ONNX network ({first_line(error)}); download or "
                "copy it again."
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3:
            found = ", ".join(f"{i.name} {i.shape}" for i in inputs) or "none"
            raise PFStorerError(
                f"'{path.name}' takes the inputs {found}; expected one of (B, 3, 112, 112), as "
                "ArcFace networks have, so choose a face recognition network."
            )
        self._input = inputs[0].name
        # A side that is free in the file has a name or None instead of a number.
        height, width = (s if isinstance(s, int) else _ARCFACE_SIZE for s in inputs[0].shape[2:])
        self._size = (height, width)

    def embed(self, images: Tensor) -> Tensor:
        """See `IdentityEmbedding.embed`; the pictures are face crops."""
        values = (_prepared(images, self._size) * 255 - 127.5) / 127.5
        # One at a time, because many files fix the batch to one.
        rows = torch.cat([self._run(value[None]) for value in values])
        return F.normalize(rows, dim=1)  # (B, D)

    def _run(self, value: Tensor) -> Tensor:
        try:
            output = self._session.run(None, {self._input: value.numpy()})[0]
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise PFStorerError(
                f"'{self._name}' cannot be run on a picture of (1, 3, {self._size[0]}, "
                f"{self._size[1]}) float32 ({first_line(error)}); choose an ArcFace network."
            ) from error
        row = torch.as_tensor(output).float().reshape(1, -1)  # (1, D)
        if row.shape[1] < 2 or not bool(row.isfinite().all()):
            raise PFStorerError(
                f"'{self._name}' gives {tuple(output.shape)} values, or some that are not finite, "
                "for a picture; expected an embedding of (1, D), so choose an ArcFace network."
            )
        return row


def load_embedding(path: str | os.PathLike[str] | None = None) -> IdentityEmbedding:
    """Loads what identities are compared with.

    Args:
        path: a file that `save_embedding` wrote, or an ArcFace-like `.onnx` file, see
            `OnnxEmbedding`. None is the shipped mini embedding, which knows the procedural
            portraits of `portraits` and nothing else: its figures mean nothing for photos.

    Raises:
        PFStorerError: no file, a damaged one or one of another kind, or no onnxruntime for an
            `.onnx` file.
    """
    path = Path(path) if path is not None else MINI_EMBEDDING_PATH
    if path.suffix.lower() == ".onnx":
        return OnnxEmbedding(path)
    tensors, metadata = read_weights(path)
    subject = f"'{path.name}'"
    config = EMBEDDING_FILE.read(
        metadata, subject, lambda values: EmbeddingConfig.from_dict(values["network"])
    )
    if config is None:
        raise PFStorerError(
            f"'{path.name}' holds no identity embedding; choose one that this plugin wrote or an "
            "ArcFace network as .onnx."
        )
    network = with_weights(lambda: EmbeddingNetwork(config), tensors, subject, "identity embedding")
    return NetworkEmbedding(network)


def save_embedding(network: EmbeddingNetwork, path: str | os.PathLike[str]) -> None:
    """Writes a network as `load_embedding` reads it, in the type its weights have.

    Raises:
        PFStorerError: see `writing.write_safetensors`.
    """
    described = EMBEDDING_FILE.metadata({"network": network.config.to_dict()})
    write_safetensors(path, network.state_dict(), described)


def identity_similarity(embedding: IdentityEmbedding, images: Tensor, references: Tensor) -> Tensor:
    """Returns each image's mean cosine similarity to the references, 1 for the same picture.

    Args:
        embedding: see `load_embedding`.
        images: (B, 3, H, W) in [0, 1].
        references: (R, 3, h, w) in [0, 1], pictures of one person.

    Returns:
        (B,) in [-1, 1], float32 on the CPU.

    Raises:
        PFStorerError: another shape or range.
    """
    return (embedding.embed(images) @ embedding.embed(references).T).mean(1)


def _prepared(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns pictures as float32 (B, 3, *size) in [0, 1] on the CPU, or says what is wrong."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise PFStorerError(
            f"Pictures to compare have the shape {tuple(images.shape)}; give (B, 3, H, W)."
        )
    images = images.detach().to("cpu", torch.float32)
    return resize_bicubic(unit_range(images, "A picture to compare"), size)
