"""Small networks of our own, from their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from ..ranges import lists_to_tuples
from .checks import check_numbers, check_shapes

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


def sizes_from(kind: type[Config], values: Mapping[str, Any], whose: str) -> Config:
    """Returns a network's sizes from values as JSON keeps them.

    Args:
        kind: dataclass of the sizes.
        values: its fields.
        whose: how an error shall begin, such as "The embedding's".

    Raises:
        PFStorerError: an unknown name or an impossible size.
    """
    try:
        return kind(**lists_to_tuples(dict(values)))
    except (TypeError, AttributeError) as error:
        raise PFStorerError(
            f"{whose} sizes cannot be read ({error}); get the file again."
        ) from error


def with_weights(
    make: Callable[[], Network], tensors: Mapping[str, Any], subject: str, whole: str
) -> Network:
    """Returns a network with weights of a file, in float32 and in memory of its own.

    Args:
        make: builds the network, here without memory.
        tensors: of the file; what is no tensor is left out.
        subject: what the sentence of an error begins with.
        whole: what the weights make up, for example "head detector".

    Raises:
        PFStorerError: weights that are missing, unknown, misshapen or not finite.
    """
    # On "meta" nothing is allocated before the file's own tensors are known to fit.
    with torch.device("meta"):
        network = make()
    given = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    check_shapes(subject, given, network.state_dict(), whole)
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in given.items()}
    check_numbers(subject, weights)
    network.load_state_dict(weights, assign=True)
    return network
