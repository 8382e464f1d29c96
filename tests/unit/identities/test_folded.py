"""Blocks multiplied out for a sampling give what the blocks give."""

import pytest
import torch
from golden_weights import relative_l2, rounding_limit
from torch import Tensor, nn

from pfstorer_core.identities import folded
from pfstorer_core.identities.base import Shown
from pfstorer_core.identities.block import PersonalizationBlock
from pfstorer_core.identities.config import PersonalizationConfig

CHANNELS, CONTEXT = 64, 24


def weights_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias = getattr(layer, "bias", None)
    return layer.weight.detach(), None if bias is None else bias.detach()


def block(seed: int, config: PersonalizationConfig | None = None) -> PersonalizationBlock:
    """A block all of whose weights matter."""
    made = PersonalizationBlock(CHANNELS, CONTEXT, config or PersonalizationConfig(tokens=5))
    generator = torch.Generator().manual_seed(seed)
    made.initialise(generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval().requires_grad_(False)


@pytest.fixture
def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features, text and reference."""
    shapes = (2, CHANNELS, 4, 6), (2, 3, CONTEXT), (1, 7, CHANNELS)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["a GPU's way", "a CPU's way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "a GPU's way":
        monkeypatch.setattr(folded, "fused_attention_works", lambda device, dtype: True)
        monkeypatch.setattr(
            folded, "_fused_attention", lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v
        )
    return request.param


@pytest.mark.parametrize("people", [1, 3])
@pytest.mark.parametrize("referred", [False, True])
@pytest.mark.parametrize("tokens", [0, 5])
def test_the_sum_is_that_of_the_blocks(inputs, way, people, referred, tokens) -> None:
    h, context, reference = inputs
    reference = reference if referred else None
    blocks = [block(k, PersonalizationConfig(tokens=tokens)) for k in range(people)]
    factors = [(0.5, torch.rand(2, 1, 4, 6)), (2.0, None), (1.0, torch.rand(2, 1, 1, 1))][:people]
    expected = h
    for made, (strength, weight) in zip(blocks, factors, strict=True):
        weight = 1 if weight is None else weight
        expected = expected + strength * weight * made(h, context, reference)
    shown = [Shown(made, context, reference) for made in blocks]
    found = folded.fold_together(shown, weights_of, h.dtype)(h, h, factors)
    assert relative_l2(found - h, expected - h) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_no_more_than_the_block(inputs, way, dtype) -> None:
    h, context, reference = inputs
    made = block(1)
    exact = made(h, context, reference)
    folding = folded.fold_together([Shown(made, context, reference)], weights_of, dtype)
    found = folding(h.to(dtype), torch.zeros_like(h, dtype=dtype), [(1.0, None)])
    assert found.dtype == dtype
    assert relative_l2(found, exact) < rounding_limit(dtype, made)


def test_laws_hold_bit_for_bit(inputs, way) -> None:
    """Nothing where the mask is zero, the same under a mask of ones, and the base if untrained."""
    h, context, _ = inputs
    folding = folded.fold_together([Shown(block(1), context)], weights_of, h.dtype)
    mask = torch.zeros(2, 1, 4, 6)
    mask[:, :, :, 3:] = 0.7
    found = folding(h, h, [(1.5, mask)])
    assert torch.equal(found[..., :3], h[..., :3]) and not torch.equal(found, h)
    ones = folding(h, h, [(1.5, torch.ones_like(mask))])
    assert torch.equal(ones, folding(h, h, [(1.5, None)]))
    fresh = PersonalizationBlock(CHANNELS, CONTEXT, PersonalizationConfig())
    fresh.initialise(torch.Generator().manual_seed(0))
    untrained = folded.fold_together([Shown(fresh, context)], weights_of, h.dtype)
    assert torch.equal(untrained(h, h, [(1.0, None)]), h)


def test_people_of_other_sizes_are_not_one_batch(inputs) -> None:
    h, context, reference = inputs
    one, other = block(1), block(2, PersonalizationConfig(tokens=4))
    for parts in (
        [Shown(one, context), Shown(other, context)],
        [Shown(one, context), Shown(one, context, reference)],
    ):
        assert folded.fold_together(parts, weights_of, h.dtype) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_gpu_computes_the_same(inputs, dtype) -> None:
    h, context, reference = (x.cuda() for x in inputs)
    made = block(1).cuda()
    exact = made.float()(h, context, reference)
    folding = folded.fold_together([Shown(made, context, reference)], weights_of, dtype)
    found = folding(h.to(dtype), torch.zeros_like(h, dtype=dtype), [(1.0, None)])
    assert folded.fused_attention_works(h.device, dtype)
    limit = 1e-2 if dtype == torch.float32 else rounding_limit(dtype, made)  # TF32
    assert relative_l2(found, exact) < limit
