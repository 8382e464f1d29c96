import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from small_restorers import TINY, UNET, Weights, bundled
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.info import RESTORER_FILE
from pfstorer_core.weights.digests import fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types(dtype: torch.dtype, weights: Weights) -> None:
    stored = {key: value.to(dtype) for key, value in weights.items()}
    as_stored = BaseRestorer.from_state_dict(stored)
    assert {weight.dtype for weight in as_stored.parameters()} == {dtype}
    assert as_stored.info.fingerprint == fingerprint(stored)
    single = BaseRestorer.from_state_dict(stored, dtype=torch.float32)
    assert {weight.dtype for weight in single.parameters()} == {torch.float32}
    assert single.info == as_stored.info


def test_mixed_types_become_float32(weights: Weights) -> None:
    key = next(iter(weights))
    restorer = BaseRestorer.from_state_dict(weights | {key: weights[key].half()})
    assert {weight.dtype for weight in restorer.parameters()} == {torch.float32}


def test_fingerprint_tells_weights_apart(weights: Weights) -> None:
    first, second = list(weights)[:2]
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items())))
    nudged = weights[first].clone()
    nudged.view(-1)[0] += 1e-6
    changes: list[Mapping[str, Tensor]] = [
        weights | {first: nudged},
        weights | {first: weights[first].half()},
        weights | {first: weights[first].unsqueeze(0)},
        {key: value for key, value in weights.items() if key != second},
    ]
    prints = [fingerprint(change) for change in (weights, *changes)]
    assert len(set(prints)) == len(prints)


def test_state_dict_stays_untouched(weights: Weights) -> None:
    before = {key: value.clone() for key, value in weights.items()}
    restorer = BaseRestorer.from_state_dict(weights)
    with torch.no_grad():
        for weight in restorer.parameters():
            weight.zero_()
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_loaded_in_inference_mode_can_train(weights: Weights) -> None:
    with torch.inference_mode():
        restorer = BaseRestorer.from_state_dict(weights)
    levels = restorer(torch.ones(1, 4, 8, 8), torch.tensor([5]))
    sum(level.sum() for level in levels).backward()
    assert all(weight.grad is not None for weight in restorer.encoder.parameters())


def test_untrained_restorer_starts_neutral_and_learns(generator: torch.Generator) -> None:
    restorer = BaseRestorer.initialise({"middle_block.0": 32}, TINY, hidden=16)
    block = restorer.sft("middle_block.0")
    latent, h = (torch.randn(1, n, 8, 8, generator=generator) for n in (4, 32))
    timesteps = torch.tensor([5])
    optimizer = torch.optim.SGD(restorer.parameters(), lr=0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        out = block(h, restorer(latent, timesteps)[0])
        (out - 1).square().mean().backward()
        return out

    assert torch.equal(step(), block.param_free_norm(h))
    optimizer.step()
    step()
    # With gamma and beta off zero, the encoder is told what to do as well.
    assert restorer.encoder.input_blocks[0][0].weight.grad.any()  # type: ignore[index]


def test_unknown_site(restorer: BaseRestorer) -> None:
    with pytest.raises(KeyError):
        restorer.sft("input_blocks.99.0")


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("part", ["structcond_stage_model.", UNET])
def test_missing_weights(part: str, every: int, weights: Weights) -> None:
    # Step by step through all kinds of layers.
    keys = sorted(key for key in weights if key.startswith(part))
    for start in range(0, len(keys), 5 * every):
        gone = set(keys[start : start + every])
        kept = {key: value for key, value in weights.items() if key not in gone}
        with pytest.raises(PFStorerError) as caught:
            BaseRestorer.from_state_dict(kept)
        assert f"lacks {len(gone)} of the restorer's {len(weights)} weights" in str(caught.value)
        assert f"'{min(gone)}'" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "structcond_stage_model.middle_block.0.in_layers.2.weight",
            (64, 32, 3, 3),
            r"1 weights of a wrong shape, .*middle_block.0.*\(64, 32, 3, 3\) instead of \(64, 64",
        ),
        (UNET + "middle_block.2.spade.mlp_beta.weight", (128, 32, 1, 1), "1 weights of a wrong"),
        (UNET + "middle_block.2.spade.mlp_shared.0.weight", (32, 32, 3, 3), r"\(32, 64, 3, 3\)"),
        ("structcond_stage_model.input_blocks.0.0.weight", (), "of a wrong shape"),
        ("structcond_stage_model.input_blocks.0.0.weight", (48, 4, 3, 3), r"of \(48, .*\(32, 4,"),
        (
            "structcond_stage_model.fea_tran.3.out_layers.3.bias",
            (32,),
            r"of \(32,\) instead of \(64",
        ),
        ("structcond_stage_model.input_blocks.1.0.skip.weight", (3,), "no known restorer has"),
        (UNET + "middle_block.2.spade.extra", (3,), r"1 weights that no known .*spade.extra"),
        (UNET + "middle_block.0.spade.param_free_norm.weight", (33,), "make no restorer"),
    ],
)
def test_misfits(key: str, shape: tuple[int, ...], message: str, weights: Weights) -> None:
    with pytest.raises(PFStorerError, match=f"^This state dict .*{message}"):
        BaseRestorer.from_state_dict(weights | {key: torch.ones(shape)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_broken_numbers(value: float, dtype: torch.dtype, weights: Weights) -> None:
    key = UNET + "middle_block.2.spade.mlp_gamma.bias"
    broken = weights[key].to(dtype, copy=True)
    broken[3] = value
    with pytest.raises(PFStorerError, match=rf"NaN or infinite values in '{key}'"):
        BaseRestorer.from_state_dict(weights | {key: broken})


@pytest.mark.parametrize(
    "change", [lambda value: value.to(torch.int8), lambda value: value.to_sparse()]
)
def test_unusable_tensors(change: Callable[[Tensor], Tensor], weights: Weights) -> None:
    key = UNET + "middle_block.2.spade.mlp_gamma.weight"
    with pytest.raises(PFStorerError, match=rf"stores '{key}' as .*get the unquantised file"):
        BaseRestorer.from_state_dict(weights | {key: change(weights[key])})


def test_broken_bundle(weights: Weights) -> None:
    content, metadata = bundled(weights)
    del content["cond_stage_model.prompt"]
    with pytest.raises(PFStorerError, match=r"brings its own .* 'cond_stage_model.prompt'"):
        BaseRestorer.from_state_dict(content, metadata)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_res_blocks", 10**9),
        ("channel_mult", [1] * 10**5),
        ("channel_mult", [2**60]),
        ("model_channels", 2**60),
        ("num_heads", 3),
    ],
)
def test_an_odd_encoder_takes_neither_memory_nor_time(
    name: str, value: Any, weights: Weights
) -> None:
    content, metadata = bundled(weights)
    description = json.loads(metadata[RESTORER_FILE.key])
    description["encoder"][name] = value
    with pytest.raises(PFStorerError, match=r"make no restorer|wrong shape|lacks|describes"):
        BaseRestorer.from_state_dict(content, {RESTORER_FILE.key: json.dumps(description)})
