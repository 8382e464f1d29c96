"""Restorer files: loading those of any known layout, saving in the own format."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import PFStorerError
from ..weights.checks import check_numbers, check_shapes
from ..weights.described import DescribedKind, named
from ..weights.digests import fingerprint
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .base import BaseRestorer
from .checkpoints import bundled_state, infer_context_dim, other_kind, tensors_of
from .families import FAMILIES, STABLESR, family_name, family_of_weights
from .info import RestorerInfo

RESTORER_FILE = DescribedKind("pfstorer_restorer", version=1)


@dataclass(frozen=True)
class Placement:
    """Where and how a restorer is built.

    Args:
        dtype: type of the weights; None keeps the file's.
        device: place of the weights; None is the CPU.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    operations: Any = torch.nn


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
    place = Placement(dtype, device, operations)
    return build_restorer(sd, metadata, f"'{Path(path).name}'", Path(path).stem, place)


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
    described = {"family": family_name(type(restorer)), **values}
    write_safetensors(path, tensors, RESTORER_FILE.metadata(described))


def build_restorer(
    sd: Mapping[str, Any],
    metadata: Mapping[str, str],
    subject: str,
    name: str,
    place: Placement,
) -> BaseRestorer:
    """Does what `BaseRestorer.from_state_dict` does, for a file of a name.

    Args:
        sd: the file's dictionary.
        metadata: metadata of the safetensors file, if it is one.
        subject: what the sentence of an error begins with.
        name: what to call the restorer unless it has a name.
        place: where and how it is built.

    Raises:
        PFStorerError: as there.
    """
    tensors = tensors_of(sd)
    described = RESTORER_FILE.read(metadata, subject, _parse)
    family = family_of_weights(tensors) if described is None else described[0]
    given = family.select(tensors) if family else {}
    if family is None or not given:
        raise PFStorerError(
            f"{subject} {other_kind(tensors)}; a restorer file of the StableSR family is needed, "
            "so choose another."
        )
    try:
        if described is not None:
            info = described[1]
        else:
            width = infer_context_dim(tensors)
            config = family.infer_config(given)
            info = RestorerInfo(name, None, config, license="", bundled=None, context_dim=width)
        expected = family.build(info, given, device="meta").weights()
    # RuntimeError: PyTorch refuses sizes beyond any memory.
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise PFStorerError(
            f"{subject} has weights that make no restorer ({str(error).rstrip('.')}); choose a "
            "restorer of the StableSR family."
        ) from error
    check_shapes(subject, given, expected, "restorer")
    bundled = {} if info.bundled is None else bundled_state(subject, tensors, given)
    check_numbers(subject, given | bundled)

    stored = {tensor.dtype for tensor in given.values()}
    dtype = place.dtype or (stored.pop() if len(stored) == 1 else torch.float32)
    info = dataclasses.replace(info, fingerprint=fingerprint(given))
    # The module has no memory of its own; it takes over the one copy that is made of each tensor,
    # which needs the file no more.
    restorer = family.build(info, given, dtype=dtype, device="meta", operations=place.operations)
    with torch.inference_mode(False):
        restorer.bundled_state = {key: value.clone() for key, value in bundled.items()} or None
    return restorer.take(given, dtype, place.device or "cpu")


def _parse(values: dict[str, Any]) -> tuple[type[BaseRestorer], RestorerInfo]:
    # Files of the first version name no family.
    family = named(FAMILIES, values.get("family", STABLESR), "family of restorers")
    bundled = values["bundled"]
    if not isinstance(bundled, dict | None):
        raise TypeError("bundled is neither an object nor null")
    for name in ("context_dim", "size"):
        if type(values.get(name)) not in (int, type(None)):
            raise TypeError(f"{name} is neither a whole number nor null")
    info = RestorerInfo(
        name=str(values["name"]),
        prediction_type=values["prediction_type"],
        config=family.config_type(**values[family.config_key]),
        license=str(values["license"]),
        bundled=bundled,
        context_dim=values.get("context_dim"),
        size=values.get("size"),
    )
    return family, info
