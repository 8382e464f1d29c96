from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, fill, relative_l2, rounding_limit
from torch import Tensor, nn

from pfstorer_core.restorers.stablesr.sft import SFTBlock


def golden_block(case: dict[str, Any], **place: Any) -> SFTBlock:
    prefix = case["key_prefix"]
    weights = fill({prefix + key: shape for key, shape in case["param_shapes"].items()})
    block = SFTBlock(case["norm_channels"], case["label_channels"], case["hidden"], **place)
    block.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()})
    return block


@pytest.fixture(params=["c320", "c64"])
def case(request: pytest.FixtureRequest, goldens: Goldens) -> dict[str, Any]:
    cases = goldens.items["sft_block"]["cases"]
    return next(case for case in cases if case["case"] == request.param)


@pytest.fixture
def vectors(case: dict[str, Any], goldens: Goldens) -> tuple[Tensor, Tensor, Tensor]:
    tensors = goldens.tensors("sft_block")
    x, cond, out = (tensors[f"{case['case']}.{name}"] for name in ("x", "cond", "out"))
    return x, cond, out


def test_golden(case: dict[str, Any], vectors: tuple[Tensor, Tensor, Tensor]) -> None:
    x, cond, out = vectors
    assert relative_l2(golden_block(case)(x, cond), out) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    case: dict[str, Any],
    vectors: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype,
) -> None:
    x, cond, out = vectors
    block = golden_block(case, dtype=dtype)
    result = block(x.to(dtype), cond.to(dtype))
    assert result.dtype == dtype
    assert relative_l2(result, out) < rounding_limit(dtype, block)


def test_autocast_keeps_the_type(generator: torch.Generator) -> None:
    x, cond = (torch.randn(1, 32, 4, 4, generator=generator) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert SFTBlock(32, 32)(x.bfloat16(), cond.bfloat16()).dtype == torch.bfloat16


def test_halves_of_a_guided_batch_share_the_condition(generator: torch.Generator) -> None:
    block = SFTBlock(32, 64, 16)
    x = torch.randn(4, 32, 5, 3, generator=generator)
    cond = torch.randn(2, 64, 5, 3, generator=generator)
    torch.testing.assert_close(block(x, cond), block(x, torch.cat([cond, cond])))


def test_zero_init_is_a_norm_that_can_learn(generator: torch.Generator) -> None:
    block = SFTBlock(32, 32, 16)
    block.zero_init()
    x, cond = (torch.randn(2, 32, 4, 4, generator=generator) for _ in range(2))
    out = block(x, cond)
    assert torch.equal(out, block.param_free_norm(x))
    out.square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (block.mlp_gamma, block.mlp_beta))


def test_layers_come_from_operations() -> None:
    made: list[str] = []

    def conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
        made.append("conv")
        return nn.Conv2d(*args, **kwargs)

    SFTBlock(32, 32, operations=SimpleNamespace(Conv2d=conv, GroupNorm=nn.GroupNorm))
    assert made == ["conv"] * 3
