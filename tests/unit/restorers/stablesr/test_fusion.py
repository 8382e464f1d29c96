from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, fill, relative_l2, rounding_limit
from torch import Tensor, nn

from pfstorer_core.restorers.stablesr.fusion import FusionBlock, fusion_sizes


@pytest.fixture
def case(goldens: Goldens) -> dict[str, Any]:
    return goldens.items["cfw_tiny"]["fuse_case"]


@pytest.fixture
def features(goldens: Goldens) -> tuple[Tensor, Tensor]:
    tensors = goldens.tensors("cfw_tiny")
    return tensors["fuse.enc_feat"], tensors["fuse.dec_feat"]


def golden_block(case: dict[str, Any], **place: Any) -> FusionBlock:
    sizes = case["in_channels"], case["out_channels"], case["num_block"], case["grow"]
    block = FusionBlock(*sizes, **place)
    prefix = case["key_prefix"]
    weights = fill({prefix + key: value.shape for key, value in block.state_dict().items()})
    block.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()})
    return block.requires_grad_(False)


@pytest.mark.parametrize("weight", [1.0, 0.35])
def test_golden(
    case: dict[str, Any], features: tuple[Tensor, Tensor], goldens: Goldens, weight: float
) -> None:
    block = golden_block(case)
    assert len(block.state_dict()) == case["param_keys"]
    expected = goldens.tensors("cfw_tiny")[f"fuse.out_w{weight}"]
    assert relative_l2(block(*features, weight), expected) <= TOLERANCE


def test_weight_zero_leaves_the_decoders_features(
    case: dict[str, Any], features: tuple[Tensor, Tensor]
) -> None:
    assert torch.equal(golden_block(case)(*features, 0.0), features[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    case: dict[str, Any],
    features: tuple[Tensor, Tensor],
    goldens: Goldens,
    dtype: torch.dtype,
) -> None:
    encoded, decoded = (x.to(dtype) for x in features)
    block = golden_block(case, dtype=dtype)
    result = block(encoded, decoded, 1.0)
    assert result.dtype == dtype
    expected = goldens.tensors("cfw_tiny")["fuse.out_w1.0"]
    assert relative_l2(result, expected) < rounding_limit(dtype, block)


@pytest.mark.parametrize("level", [1, 2])
def test_the_official_layout(goldens: Goldens, level: int) -> None:
    prefix = f"decoder.fusion_layer_{level}."
    layout = goldens.json("checkpoint_layout.json")["cfw_fusion"]
    shapes = {k.removeprefix(prefix): s for k, s in layout.items() if k.startswith(prefix)}
    sizes = fusion_sizes({key: torch.empty(s, device="meta") for key, s in shapes.items()})
    channels = 128 * 2**level
    assert sizes == (channels, channels, 2, 32)
    block = FusionBlock(*sizes, device="meta")
    assert {key: list(value.shape) for key, value in block.state_dict().items()} == shapes


def test_layers_come_from_operations() -> None:
    made: list[str] = []

    def conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
        made.append("conv")
        return nn.Conv2d(*args, **kwargs)

    operations = SimpleNamespace(Conv2d=conv, GroupNorm=nn.GroupNorm)
    FusionBlock(32, 32, num_blocks=1, operations=operations)
    assert len(made) == 3 + 15 + 2
