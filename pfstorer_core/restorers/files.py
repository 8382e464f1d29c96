"""Restorer files: loading those of any known layout, saving in the own format."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from ..weights.checks import check_numbers
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .base import BaseRestorer, Source, build_restorer
from .info import RESTORER_FILE


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
    source = Source(f"'{Path(path).name}'", Path(path).stem, metadata)
    return build_restorer(sd, source, dtype=dtype, device=device, operations=operations)


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
    values = dataclasses.asdict(restorer.info)
    del values["fingerprint"]
    values[restorer.config_key] = values.pop("config")
    described = {"family": restorer.family(), **values}
    write_safetensors(path, tensors, RESTORER_FILE.metadata(described))
