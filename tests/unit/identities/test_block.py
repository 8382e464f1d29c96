"""Tests of the personalization block: its formula, its exact zero, its sizes."""

import pytest
import torch
from golden_weights import relative_l2, rounding_limit
from torch import Tensor
from torch.nn import functional as F

from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.block import PersonalizationBlock, reference_tokens
from pfstorer_core.identities.config import PersonalizationConfig

CHANNELS, CONTEXT = 64, 24
CONFIG = PersonalizationConfig(tokens=5)


def block(config: PersonalizationConfig = CONFIG, zero: bool = False) -> PersonalizationBlock:
    """A block of random weights, all of which matter unless `zero` keeps the fresh last layer."""
    made = PersonalizationBlock(CHANNELS, CONTEXT, config)
    generator = torch.Generator().manual_seed(1)
    made.initialise(generator)
    if not zero:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def inputs(batch: int = 2, size: tuple[int, int] = (4, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(batch, CHANNELS, *size, generator=generator),
        torch.randn(batch, 3, CONTEXT, generator=generator),
    )


def by_hand(made: PersonalizationBlock, h: Tensor, context: Tensor, reference: Tensor | None):
    """The block's equation with plain matrices, for one item and head by head."""
    channels, height, width = h.shape
    z = made.norm(h[None])[0].reshape(channels, -1).T @ made.to_bottleneck.weight.T
    z = z + made.to_bottleneck.bias  # (HW, width)
    memory = [made.text_to_key_value(made.text_norm(context))]
    if made.tokens is not None:
        memory.append(made.tokens.weight)
    if reference is not None:
        memory.append(made.reference_to_key_value(made.reference_norm(reference)))
    key, value = torch.cat(memory).chunk(2, -1)
    query = made.to_query(made.query_norm(z))
    dim = made.config.head_dim
    heads = []
    for k in range(0, z.shape[-1], dim):
        part = slice(k, k + dim)
        scores = query[:, part] @ key[:, part].T / dim**0.5
        heads.append(scores.softmax(-1) @ value[:, part])
    z = z + made.attended(torch.cat(heads, -1))
    z = z + made.mlp_out(F.gelu(made.mlp_in(made.mlp_norm(z))))
    delta = made.out(z) * made.gamma.weight
    return delta.T.reshape(channels, height, width)


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("referred", [False, True])
def test_the_block_computes_its_equation(tokens: int, referred: bool) -> None:
    made = block(PersonalizationConfig(min_width=64, tokens=tokens))
    assert made.heads == 2
    h, context = inputs()
    reference = torch.randn(1, 7, CHANNELS) if referred else None
    with torch.no_grad():
        found = made(h, context, reference)
        for item in range(2):
            shown = None if reference is None else reference[0]
            expected = by_hand(made, h[item], context[item], shown)
            torch.testing.assert_close(found[item], expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_block_adds_exactly_nothing() -> None:
    h, context = inputs()
    made = block(zero=True)
    assert not made(h, context, torch.randn(1, 7, CHANNELS)).any()
    assert (made.gamma.weight == 1).all(), "a gamma of zero would keep the rest from learning"


def test_the_first_gradient_reaches_the_last_layer_and_the_next_all_others() -> None:
    h, context = inputs()
    made = block(zero=True).train()
    target = torch.randn_like(h)
    for step in range(2):
        made.zero_grad()
        (made(h, context, torch.randn(1, 7, CHANNELS)) - target).square().mean().backward()
        touched = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
        expected = {n for n, _ in made.named_parameters()} if step else {"out.weight", "out.bias"}
        assert touched == expected
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.sub_(parameter.grad if parameter.grad is not None else 0)


@pytest.mark.parametrize("learned", [False, True])
def test_gamma_is_learned_only_if_asked_for(learned: bool) -> None:
    made = block(PersonalizationConfig(learned_gamma=learned), zero=True)
    assert made.gamma.weight.requires_grad is learned
    assert all(p.requires_grad for n, p in made.named_parameters() if n != "gamma.weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, None])
def test_delta_has_the_type_of_the_features(dtype: torch.dtype, weights) -> None:
    made = block()
    h, context = inputs()
    single = made(h, context)
    if weights is None:
        made = made.to(dtype)
        half = made(h.to(dtype), context.to(dtype), torch.randn(1, 7, CHANNELS, dtype=dtype))
        plain = made(h.to(dtype), context.to(dtype))
    else:  # single weights under autocast, as in training
        with torch.autocast("cpu", dtype):
            half = made(h.to(dtype), context, torch.randn(1, 7, CHANNELS))
            plain = made(h.to(dtype), context)
    assert half.dtype == plain.dtype == dtype
    assert relative_l2(plain, single) < rounding_limit(dtype, made)


def test_an_item_of_a_batch_is_as_it_would_be_alone() -> None:
    made = block()
    h, context = inputs(3)
    reference = torch.randn(1, 7, CHANNELS)
    together = made(h, context, reference)
    for k in range(3):
        alone = made(h[k : k + 1], context[k : k + 1], reference)
        torch.testing.assert_close(together[k : k + 1], alone)


def test_text_tokens_and_references_all_matter() -> None:
    made = block()
    h, context = inputs()
    reference = torch.randn(1, 7, CHANNELS, generator=torch.Generator().manual_seed(3))
    plain = made(h, context)
    assert not torch.allclose(made(h, context + 1 - 2 * context, None), plain)
    assert not torch.allclose(made(h, context, reference), plain)
    assert not torch.allclose(made(h, context, reference.flip(-1)), made(h, context, reference))
    with torch.no_grad():
        made.tokens.weight.mul_(-1)
    assert not torch.allclose(made(h, context), plain)


@pytest.mark.parametrize("channels", [32, 320, 640, 1280])
def test_the_bottleneck_is_whole_heads(channels: int) -> None:
    config = PersonalizationConfig()
    width = config.width(channels)
    assert width % config.head_dim == 0
    assert width >= max(config.min_width, channels // config.reduction)
    assert width - config.head_dim < max(config.min_width, channels // config.reduction)


def test_a_fresh_block_is_a_function_of_its_generator() -> None:
    a, b, c = (PersonalizationBlock(CHANNELS, CONTEXT, CONFIG) for _ in range(3))
    for made, seed in ((a, 0), (b, 0), (c, 1)):
        made.initialise(torch.Generator().manual_seed(seed))
    for (name, x), y, z in zip(a.named_parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(x, y), name
        drawn = x.ndim == 2 and name != "out.weight"
        assert torch.equal(x, z) is not drawn, name


class TestReferenceTokens:
    def test_a_small_map_keeps_each_cell(self) -> None:
        features = torch.randn(2, 32, 3, 5)
        tokens = reference_tokens(features, 8)
        assert tokens.shape == (1, 30, 32)
        assert torch.equal(tokens[0, 15 + 1 * 5 + 2], features[1, :, 1, 2])

    def test_a_large_map_is_averaged(self) -> None:
        features = torch.randn(1, 32, 8, 4)
        tokens = reference_tokens(features, 4)
        assert tokens.shape == (1, 16, 32)
        torch.testing.assert_close(tokens[0, 5], features[0, :, 2:4, 1].mean(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_width", 0),
        ("reduction", 0),
        ("head_dim", 5000),
        ("tokens", -1),
        ("tokens", 1.5),
        ("mlp_ratio", 10**9),
        ("reference_grid", "16"),
    ],
)
def test_sizes_that_make_no_sense_are_named(name: str, value) -> None:
    with pytest.raises(PFStorerError, match=f"{name} is {value!r}; give a whole number"):
        PersonalizationConfig(**{name: value})
