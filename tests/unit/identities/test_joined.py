"""Blocks that are joined for a training give what the blocks give, and their gradients."""

import pytest
import torch
from golden_weights import relative_l2
from torch import Tensor

from pfstorer_core.identities.base import Shown
from pfstorer_core.identities.block import PersonalizationBlock
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.identities.joined import join_blocks

CONTEXT, BATCH = 24, 3
# channels and size of features; the widths of the bottlenecks differ
SITES = ((64, (4, 6)), (96, (2, 2)), (64, (2, 3)), (320, (2, 2)), (96, (4, 6)))
CONFIG = PersonalizationConfig(min_width=32, reduction=5, tokens=5)


def blocks(config: PersonalizationConfig = CONFIG) -> list[PersonalizationBlock]:
    """Blocks all of whose weights matter."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for channels, _ in SITES:
        block = PersonalizationBlock(channels, CONTEXT, config)
        block.initialise(generator)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        made.append(block.double())
    return made


def inputs(referred: bool = False) -> tuple[list[Tensor], Tensor, list[Tensor | None]]:
    """Features of each site, one text and references."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features = [drawn(BATCH, channels, *size) for channels, size in SITES]
    text = drawn(1, 3, CONTEXT)
    shown = [drawn(1, size[0] * size[1], channels) for channels, size in SITES]
    return features, text, [x if referred else None for x in shown]


def gradients(
    trained: list[PersonalizationBlock], outputs: list[Tensor], features: list[Tensor]
) -> dict[str, Tensor]:
    """Of a loss that weighs all values otherwise, by the name of what it is for."""
    loss = torch.stack([(torch.linspace(-1, 1, x.numel()) * x.flatten()).sum() for x in outputs])
    named = {f"{k}.{n}": p for k, b in enumerate(trained) for n, p in b.named_parameters()}
    named |= {f"features {k}": x for k, x in enumerate(features)}
    named = {name: x for name, x in named.items() if x.requires_grad}
    found = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True)
    return {name: x for name, x in zip(named, found, strict=True) if x is not None}


@pytest.mark.parametrize("referred", [False, True])
@pytest.mark.parametrize("tokens", [0, 5])
def test_sums_and_gradients_are_those_of_the_blocks(referred: bool, tokens: int) -> None:
    config = PersonalizationConfig(min_width=32, reduction=5, tokens=tokens)
    trained = blocks(config)
    features, text, shown = inputs(referred)
    found = []
    for joined in (False, True):
        h = [x.clone().requires_grad_() for x in features]
        context = text.expand(BATCH, -1, -1)
        parts = [Shown(b, text, r) for b, r in zip(trained, shown, strict=True)]
        if joined:
            run = join_blocks(parts, BATCH, torch.float64)
            outputs = [f(x) for f, x in zip(run, h, strict=True)]
        else:
            outputs = [x + p.block(x, context, p.reference) for p, x in zip(parts, h, strict=True)]
        found.append((outputs, gradients(trained, outputs, h)))
    (plain, expected), (outputs, received) = found
    for a, b in zip(plain, outputs, strict=True):
        torch.testing.assert_close(b, a)
    assert received.keys() == expected.keys() and len(expected) >= 24 * len(SITES)
    for name, gradient in expected.items():
        assert relative_l2(received[name], gradient) < 1e-10, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_no_more_than_autocast(dtype: torch.dtype) -> None:
    trained = blocks()
    features, text, shown = inputs(referred=True)
    exact = [x + b(x, text, r) for b, x, r in zip(trained, features, shown, strict=True)]
    expected = gradients(trained, exact, [])
    errors = []
    for block in trained:
        block.float()
    for joined in (False, True):
        h = [x.to(dtype) for x in features]
        parts = [
            Shown(b, text.float(), None if r is None else r.float())
            for b, r in zip(trained, shown, strict=True)
        ]
        with torch.autocast("cpu", dtype):
            if joined:
                run = join_blocks(parts, BATCH, dtype)
                outputs = [f(x) for f, x in zip(run, h, strict=True)]
            else:
                outputs = [
                    x + p.block(x, p.context, p.reference) for p, x in zip(parts, h, strict=True)
                ]
        assert all(x.dtype == dtype for x in outputs)
        found = gradients(trained, outputs, [])
        assert all(x.dtype == torch.float32 for x in found.values())
        errors.append(sum(relative_l2(found[n].double(), x) for n, x in expected.items()))
    assert errors[1] < 1.5 * errors[0]


def test_an_untrained_adapter_adds_nothing() -> None:
    features, text, _ = inputs()
    trained = []
    for channels, _ in SITES:
        block = PersonalizationBlock(channels, CONTEXT, CONFIG)
        block.initialise(torch.Generator().manual_seed(0))
        trained.append(block)
    for dtype in (torch.float32, torch.bfloat16):
        parts = [Shown(block, text.float()) for block in trained]
        for run, h in zip(join_blocks(parts, BATCH, dtype), features, strict=True):
            assert torch.equal(run(h.to(dtype)), h.to(dtype))


def test_gradients_need_no_copy_of_their_own() -> None:
    """Those of many parameters are parts of one tensor."""
    trained = blocks()
    features, text, _ = inputs()
    run = join_blocks([Shown(block, text) for block in trained], BATCH, torch.float64)
    sum(f(x).square().mean() for f, x in zip(run, features, strict=True)).backward()
    assert all(p.grad is not None for n, p in trained[0].named_parameters() if "reference" not in n)
    for name in ("out.weight", "to_query.weight", "mlp_out.weight", "text_to_key_value.weight"):
        one, other = (trained[k].get_parameter(name).grad.untyped_storage() for k in (0, 2))
        assert one.data_ptr() == other.data_ptr(), name
