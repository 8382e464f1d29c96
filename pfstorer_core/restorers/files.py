"""Restorer files: loading those of any known layout, saving in the own format."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from ..weights.checks import check_numbers
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .base import BaseRestorer, build_restorer
from .info import FORMAT_VERSION, METADATA_KEY


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: Any = torch.nn,
) -> BaseRestorer:
    """Loads a restorer file of any known layout without running code of the file.

    Args:
        path: .ckpt, .pth or .safetensors; recognised by content.

    The other arguments are those of `BaseRestorer.from_state_dict`.

    Raises:
        PFStorerError: no file, another kind of file, or a damaged one.
    """
    sd, metadata = read_weights(path)
    name = Path(path).name
    return build_restorer(sd, metadata, f"'{name}'", Path(path).stem, dtype, device, operations)


def save(restorer: BaseRestorer, path: str | os.PathLike[str]) -> None:
    """Writes a restorer in the own format, whole or not at all.

    Args:
        restorer: the restorer.
        path: the file, ending in .safetensors.

    Raises:
        PFStorerError: weights that are not finite, or a file that cannot be written.
    """
    tensors = restorer.state_dict_for_saving()
    check_numbers(f"The restorer '{restorer.info.name}'", tensors)
    header = {"format_version": FORMAT_VERSION, **dataclasses.asdict(restorer.info)}
    del header["fingerprint"]
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps(header)})
