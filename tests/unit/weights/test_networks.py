from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pfstorer_core.errors import PFStorerError
from pfstorer_core.weights.networks import sizes_from, with_weights


@dataclass(frozen=True)
class Sizes:
    widths: tuple[int, ...] = (1,)


def make() -> nn.Linear:
    return nn.Linear(2, 3)


def test_sizes_come_back_with_tuples() -> None:
    assert sizes_from(Sizes, {"widths": [2, 3]}, "The toy's") == Sizes((2, 3))
    with pytest.raises(PFStorerError, match=r"^The toy's sizes cannot be read"):
        sizes_from(Sizes, {"depth": 1}, "The toy's")


def test_a_network_has_the_files_weights_in_memory_of_its_own() -> None:
    given = {name: tensor.half() for name, tensor in make().state_dict().items()}
    network = with_weights(make, {**given, "note": "no tensor"}, "'toy'", "toy")
    assert network.weight.dtype == torch.float32
    torch.testing.assert_close(network.weight.detach(), given["weight"].float())
    given["weight"].zero_()
    assert network.weight.count_nonzero() > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bias": torch.zeros(4)}, "wrong shape"),
        ({"more": torch.zeros(1)}, "no known toy has"),
        ({"bias": torch.tensor([0.0, float("nan"), 0.0])}, "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(PFStorerError, match=sentence):
        with_weights(make, make().state_dict() | change, "'toy'", "toy")
