"""Tests of captured networks: what is replayed is what would have been computed."""

import copy

import pytest
import torch
from torch import nn

from pfstorer_core.training.capture import Captured

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)).cuda()


@needs_cuda
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


@needs_cuda
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


@needs_cuda
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


class ScarceMemory:
    """Captures as many modules as there is memory for; a module runs on as it is."""

    def __init__(self, room: int, error: RuntimeError) -> None:
        self.left, self.error = room, error
        self.calls = 0

    def __call__(self, module: nn.Module, samples: tuple[torch.Tensor, ...]) -> None:
        self.calls += 1
        if self.left == 0:
            raise self.error
        self.left -= 1


@pytest.mark.parametrize("room", [0, 1])
def test_where_memory_lacks_a_training_goes_on_uncaptured(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    """From the first graph on, or from the second, and it is tried no more."""
    torch.manual_seed(0)
    plain = Optional()
    capture = ScarceMemory(room, torch.OutOfMemoryError("CUDA out of memory."))
    captured = Captured(copy.deepcopy(plain), torch.float32, capture)
    for seed, there in enumerate((0, 1, 0, 1)):
        torch.manual_seed(seed)
        x, other = torch.randn(2, 4, 8)
        for model in (plain, captured):
            model.zero_grad(set_to_none=True)
            model(x, other if there else None).square().mean().backward()
        for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
            assert (a.grad is None) is (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)
    assert capture.calls == room + 1
    assert [r.message for r in caplog.records] == [
        "Too little GPU memory to capture the training; it goes on uncaptured."
    ]
    assert not captured._variants, "graphs keep memory"


def test_what_is_no_lack_of_memory_is_raised() -> None:
    captured = Captured(Optional(), torch.float32, ScarceMemory(0, RuntimeError("illegal access")))
    with pytest.raises(RuntimeError, match="illegal access"):
        captured(torch.randn(4, 8), None)


def test_it_is_captured_once_for_each_kind_of_call() -> None:
    capture = ScarceMemory(2, RuntimeError("a third"))
    captured = Captured(Optional(), torch.float32, capture)
    x = torch.randn(4, 8)
    for inputs in ((x, None), (x, x), (x, None), (x, x)):
        captured(*inputs)
    captured.eval()
    captured(x, None)
    assert capture.calls == 2
