"""Checks of weights that were read or are to be written."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import PFStorerError


def check_numbers(subject: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that cannot be computed with.

    Raises:
        PFStorerError: a quantised, sparse or integer tensor, or one with NaN or infinite values.
    """
    for key, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_meta
        if not plain or not tensor.is_floating_point():
            raise PFStorerError(
                f"{subject} stores '{key}' as {str(tensor.dtype).removeprefix('torch.')}, but "
                "plain floating-point weights are needed; get the unquantised file."
            )
        if not torch.isfinite(tensor.float()).all():
            raise PFStorerError(
                f"{subject} has NaN or infinite values in '{key}'; the weights are broken, so "
                "download them again or use an earlier checkpoint."
            )


def check_shapes(
    subject: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], whole: str
) -> None:
    """Refuses weights that are incomplete or do not fit together; no value is looked at.

    Args:
        subject: what the sentence of an error begins with.
        given: weights by key.
        expected: tensors of the right keys and shapes, on any device.
        whole: what they make up, for example "restorer".

    Raises:
        PFStorerError: missing, unknown or misshapen weights.
    """
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise PFStorerError(
            f"{subject} lacks {len(missing)} of the {whole}'s {len(expected)} weights, for "
            f"example '{missing[0]}'; it is incomplete, so download or convert it again."
        )
    unknown = sorted(given.keys() - expected.keys())
    if unknown:
        raise PFStorerError(
            f"{subject} has {len(unknown)} weights that no known {whole} has, for example "
            f"'{unknown[0]}'; choose another file, or update PFStorer."
        )
    wrong = sorted(key for key in expected if given[key].shape != expected[key].shape)
    if wrong:
        raise PFStorerError(
            f"{subject} has {len(wrong)} weights of a wrong shape, for example '{wrong[0]}' of "
            f"{tuple(given[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}; "
            "download it again, or choose another."
        )


def part_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the weights whose keys begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
