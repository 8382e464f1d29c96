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
