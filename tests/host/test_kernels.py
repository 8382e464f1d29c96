"""How many operations a step starts, which a GPU waits for, stays within bounds."""

import sys

import pytest
import torch
from setup_host import REPO

sys.path.append(str(REPO / "benchmarks"))
from counting import launches


def test_views_and_allocations_are_free() -> None:
    x = torch.ones(2, 3, 4)
    assert launches(lambda: torch.empty_like(x).view(6, 4).T[1:].unflatten(1, (2, 3))) == 0
    assert launches(lambda: (x + 1).flatten() * 2) == 2
    assert launches(lambda: x.transpose(0, 1).reshape(6, 4)) == 1, "it copies"
    attention = torch.nn.functional.scaled_dot_product_attention
    q = torch.ones(1, 2, 3, 4, device="meta", requires_grad=True)
    assert launches(lambda: attention(q, q, q)) == 1


@pytest.fixture(scope="module")
def counts() -> dict[str, float]:
    from kernels import count_steps

    return count_steps()


def test_a_restorer_starts_a_quarter_more_than_the_bare_unet(counts) -> None:
    assert counts["restorer"] <= 840
    assert counts["restorer"] <= 1.25 * counts["bare UNet"]


def test_an_adapter_starts_nine_for_each_block(counts) -> None:
    one = counts["restorer and adapter"] - counts["restorer"]
    assert one <= 9 * 21 + 1


def test_further_adapters_run_in_the_same_batch(counts) -> None:
    further = counts["restorer and three adapters"] - counts["restorer and adapter"]
    assert further <= 2 * 150


def test_a_training_step_is_bounded(counts) -> None:
    assert counts["training step"] <= 2300


@pytest.mark.slow
def test_variants_of_layout_and_compilation_run() -> None:
    from kernels import variants

    report = variants("cpu", torch.float32, side=16, small=True, backend="eager")
    names = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("|")]
    assert names[2:] == [
        "bare UNet",
        "restorer and adapter",
        "bare UNet, channels last",
        "restorer and adapter, channels last",
        "bare UNet, compiled",
    ]
