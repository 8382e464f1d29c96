import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_weights import TOLERANCE, Goldens, fill, relative_l2, rounding_limit
from torch import nn

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.stablesr.encoder import (
    EncoderConfig,
    TimeAwareEncoder,
    timestep_embedding,
)

PREFIX = "structcond_stage_model."
TINY = EncoderConfig(model_channels=32, out_channels=64)
FIELDS = {field.name for field in dataclasses.fields(EncoderConfig)}


def golden_encoder(config: EncoderConfig, **place: Any) -> TimeAwareEncoder:
    encoder = TimeAwareEncoder(config, **place)
    weights = fill({PREFIX + key: value.shape for key, value in encoder.state_dict().items()})
    encoder.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights.items()})
    return encoder


@pytest.fixture(scope="module")
def tiny() -> TimeAwareEncoder:
    return golden_encoder(TINY)


@pytest.fixture(scope="module")
def full() -> TimeAwareEncoder:
    return golden_encoder(EncoderConfig())


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("tiny", case) for case in ("a", "b", "c", "d", "e_fractional_t", "f_odd_size")),
        *(("full", case) for case in "abcd"),
    ],
)
def test_golden(name: str, case: str, goldens: Goldens, request: pytest.FixtureRequest) -> None:
    file = f"time_aware_encoder_{name}"
    item, tensors = goldens.items[file], goldens.tensors(file)
    facts = next(facts for facts in item["cases"] if facts["case"] == case)
    encoder: TimeAwareEncoder = request.getfixturevalue(name)
    known = {key: value for key, value in item["config"].items() if key in FIELDS}
    assert encoder.config == EncoderConfig(**known)
    with torch.inference_mode():
        levels = encoder(tensors[facts["latent"]], torch.tensor(facts["timesteps"]))
    assert [list(level.shape) for level in levels] == [level["shape"] for level in facts["levels"]]
    for number, level in enumerate(levels):
        expected = tensors[f"{case}.level{number}"]
        assert relative_l2(level[:, :: facts["channel_stride"]], expected) <= TOLERANCE


def test_official_keys_and_shapes(goldens: Goldens) -> None:
    encoder = TimeAwareEncoder(EncoderConfig(), device="meta")
    shapes = {PREFIX + key: list(value.shape) for key, value in encoder.state_dict().items()}
    assert shapes == goldens.json("checkpoint_layout.json")["structcond"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, goldens: Goldens) -> None:
    tensors = goldens.tensors("time_aware_encoder_tiny")
    encoder = golden_encoder(TINY, dtype=dtype)
    levels = encoder(tensors["a.latent"].to(dtype), torch.tensor([999]))
    for number, level in enumerate(levels):
        assert level.dtype == dtype
        assert relative_l2(level, tensors[f"a.level{number}"]) < rounding_limit(dtype, encoder)


def test_timesteps_stay_apart_in_half_precision() -> None:
    # In bfloat16 itself 999 and 1000 are one number.
    embedding = timestep_embedding(torch.tensor([999, 1000]).bfloat16(), 64)
    assert torch.equal(embedding[0], embedding[1])
    embedding = timestep_embedding(torch.tensor([999, 1000]), 64)
    assert embedding.dtype == torch.float32
    assert (embedding[0] - embedding[1]).abs().max() > 0.1


def test_batch_equals_its_items(tiny: TimeAwareEncoder, generator: torch.Generator) -> None:
    latent = torch.randn(3, 4, 16, 12, generator=generator)
    timesteps = torch.tensor([3.0, 400.5, 999.0])
    with torch.inference_mode():
        together = tiny(latent, timesteps)
        for i in range(3):
            alone = tiny(latent[i : i + 1], timesteps[i : i + 1])
            for a, b in zip(alone, together, strict=True):
                assert relative_l2(a, b[i : i + 1]) <= TOLERANCE


def test_one_timestep_serves_all(tiny: TimeAwareEncoder, generator: torch.Generator) -> None:
    # not smaller: a group norm over single pixels would turn rounding into signs
    latent = torch.randn(2, 4, 16, 16, generator=generator)
    with torch.inference_mode():
        once, twice = (tiny(latent, torch.tensor(t)) for t in ([7], [7, 7]))
    for a, b in zip(once, twice, strict=True):
        assert relative_l2(a, b) <= TOLERANCE


def test_latent_narrower_than_the_levels(
    tiny: TimeAwareEncoder, generator: torch.Generator
) -> None:
    levels = tiny(torch.randn(1, 4, 5, 4, generator=generator), torch.tensor([5]))
    assert [level.shape[2:] for level in levels] == [(5, 4), (3, 2), (2, 1), (1, 1)]


def test_all_weights_learn(tiny: TimeAwareEncoder, generator: torch.Generator) -> None:
    levels = tiny(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([5]))
    weights = list(tiny.parameters())
    gradients = torch.autograd.grad(sum(level.square().sum() for level in levels), weights)
    assert len(gradients) == 200
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_fresh_residual_branches_are_identities(generator: torch.Generator) -> None:
    # Without branches the timestep has no way to the output.
    encoder = TimeAwareEncoder(TINY)
    latent = torch.randn(1, 4, 16, 16, generator=generator)
    early, late = (encoder(latent, torch.tensor([t])) for t in (999, 1))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(early, late, strict=True))


def test_compiles_to_one_graph(generator: torch.Generator) -> None:
    encoder = golden_encoder(EncoderConfig(4, 32, 32, 1, (2,), (1, 1)))
    latent, timesteps = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([5])
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for a, b in zip(compiled(latent, timesteps), encoder(latent, timesteps), strict=True):
        torch.testing.assert_close(a, b)


def test_layers_come_from_operations() -> None:
    class Linear(nn.Linear):
        pass

    class Conv1d(nn.Conv1d):
        pass

    class Conv2d(nn.Conv2d):
        pass

    class GroupNorm(nn.GroupNorm):
        pass

    operations = SimpleNamespace(Linear=Linear, Conv1d=Conv1d, Conv2d=Conv2d, GroupNorm=GroupNorm)
    encoder = TimeAwareEncoder(TINY, operations=operations)
    layers = [module for module in encoder.modules() if list(module.parameters(recurse=False))]
    assert {type(layer) for layer in layers} == {Linear, Conv1d, Conv2d, GroupNorm}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_channels": 48}, "model_channels is 48"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"num_heads": 3}, "num_heads is 3"),
        ({"channel_mult": ()}, "not a positive whole number"),
        ({"channel_mult": (1, 0)}, "not a positive whole number"),
        ({"num_res_blocks": 1.5}, "not a positive whole number"),
    ],
)
def test_impossible_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PFStorerError, match=message):
        EncoderConfig(**fields)


def test_configs_from_json_compare_equal() -> None:
    assert EncoderConfig(attention_resolutions=[1, 2, 4], channel_mult=[1, 1, 2, 2]) == (  # type: ignore[arg-type]
        EncoderConfig()
    )


def test_wrong_latent_is_named(tiny: TimeAwareEncoder) -> None:
    with pytest.raises(PFStorerError, match=r"\(1, 16, 8, 8\).*\(batch, 4, height, width\)"):
        tiny(torch.zeros(1, 16, 8, 8), torch.tensor([5]))
