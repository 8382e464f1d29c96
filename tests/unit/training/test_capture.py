"""Tests of captured networks: what is replayed is what would have been computed."""

import copy

import pytest
import torch
from torch import nn

from pfstorer_core.training.capture import Captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)).cuda()


def test_replays_compute_loss_and_gradients():
    captured, plain = Captured(network(), torch.float32), network()
    for seed in range(3):  # the first call captures
        torch.manual_seed(seed)
        x = torch.randn(4, 8, device="cuda")
        for model in (captured, plain):
            model.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
        for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
            with torch.no_grad():
                for weight in (a, b):
                    weight -= 0.1 * weight.grad  # the graph reads the weights anew


def test_other_shapes_run_in_evaluation_mode():
    captured = Captured(network(), torch.float32)
    captured(torch.randn(4, 8, device="cuda")).sum().backward()
    x = torch.randn(2, 8, device="cuda")
    captured.eval()
    with torch.no_grad():
        torch.testing.assert_close(captured(x), network()(x))


class Optional(nn.Module):
    """A network with a layer for an input that may lack, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen = (nn.Linear(8, 8) for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = self.frozen(self.first(x)).tanh()
        return x if other is None else x + self.second(other)


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (1, 1, 0, 0, 1)])
def test_an_input_may_lack(order: tuple[int, ...]):
    torch.manual_seed(0)
    plain = Optional().cuda()
    captured = Captured(copy.deepcopy(plain), torch.float32)
    for seed, there in enumerate(order):
        torch.manual_seed(seed)
        x, other = torch.randn(2, 4, 8, device="cuda")
        for model in (plain, captured):
            model.zero_grad(set_to_none=True)
            model(x, other if there else None).square().mean().backward()
        for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
            assert (a.grad is None) is (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)
