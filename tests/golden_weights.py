"""The golden vectors and the deterministic weights that they were computed with."""

import functools
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # relative L2 error; see goldens/README.md


@dataclass(frozen=True)
class Goldens:
    """A set of golden vectors.

    Args:
        folder: where `manifest.json` lies.
    """

    folder: Path

    @classmethod
    def find(cls) -> "Goldens":
        """Returns the set at PFSTORER_GOLDENS, else the one beside this file."""
        return cls(Path(os.environ.get("PFSTORER_GOLDENS", Path(__file__).parent / "goldens")))

    @functools.cached_property
    def items(self) -> dict[str, Any]:
        """What the manifest says of each file."""
        return self.json("manifest.json")["items"]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Returns the vectors of one file, for example "sft_block"."""
        return safetensors.torch.load_file(self.folder / f"{name}.safetensors")


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Returns |actual - expected| / |expected|, refusing tensors of two shapes."""
    if actual.shape != expected.shape:
        raise ValueError(f"{tuple(actual.shape)} against {tuple(expected.shape)}")
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return ((actual - expected).norm() / expected.norm()).item()


def rounding_limit(dtype: torch.dtype, *networks: nn.Module) -> float:
    """Returns the relative L2 error that rounding may cause in networks that run in a row.

    Every layer rounds its weights and its result, each by at most the unit roundoff of the type.
    In a row these errors grow as a random walk does, by the root of their number.

    Source: Higham and Mary 2019, A new approach to probabilistic rounding error analysis.
    """
    layers = [
        module
        for network in networks
        for module in network.modules()
        if list(module.parameters(recurse=False))
    ]
    return torch.finfo(dtype).eps / 2 * math.sqrt(2 * len(layers))


def deterministic_tensor(key: str, shape: Sequence[int]) -> Tensor:
    """Returns the float32 weight of a state-dict key, by the recipe in `goldens/README.md`.

    Args:
        key: complete key, with the prefix of its checkpoint.
        shape: shape in the checkpoint; reshaping changes the values.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    values = torch.randn(tuple(shape), generator=generator)
    if key.endswith(".bias"):
        return 0.02 * values
    if len(shape) == 1:
        return 1 + 0.05 * values
    return values * 0.5 / math.sqrt(math.prod(shape[1:]))


def fill(keys_and_shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Returns deterministic weights for each key."""
    return {key: deterministic_tensor(key, shape) for key, shape in keys_and_shapes.items()}
