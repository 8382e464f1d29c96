"""Weights of layers, wherever a host keeps them."""

from collections.abc import Callable

from torch import Tensor, nn

# A layer to its weight and bias, on the device and in the type that are computed in; to be read at
# once, for the next layer's may take their place.
WeightsOf = Callable[[nn.Module], tuple[Tensor, Tensor | None]]
