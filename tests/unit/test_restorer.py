import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from golden_weights import TOLERANCE, Goldens, deterministic_tensor, fill, relative_l2
from torch import Tensor

from pfstorer_core import restorer as restorers
from pfstorer_core.encoder import EncoderConfig
from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorer import BaseRestorer

UNET = "model.diffusion_model."
TINY = EncoderConfig(model_channels=32, out_channels=64)
SITES = {"input_blocks.1.0": 64, "input_blocks.10.0": 128, "middle_block.2": 128}
SITES |= {"output_blocks.2.0": 96}
OTHER_WEIGHTS = {
    UNET + "input_blocks.1.0.in_layers.2.weight": (64, 64, 3, 3),
    UNET + "time_embed.0.weight": (8, 8),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.model.ln_final.weight": (8,),
    "model_ema.diffusion_modelinput_blocks10spademlp_gammaweight": (64, 32, 3, 3),
    "model_ema.structcond_stage_modeltime_embed0weight": (8, 8),
    "betas": (1000,),
}

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def filled() -> Weights:
    untrained = BaseRestorer.initialise(SITES, TINY, hidden=32)
    return fill({key: value.shape for key, value in sorted(untrained.weights().items())})


@pytest.fixture
def weights(filled: Weights) -> Weights:
    """Deterministic weights of a small restorer, in alphabetical order."""
    return {key: value.clone() for key, value in filled.items()}


@pytest.fixture
def restorer(weights: Weights) -> BaseRestorer:
    return BaseRestorer.from_state_dict(weights)


def without_unet_prefix(weights: Weights) -> Weights:
    return {key.removeprefix(UNET): value for key, value in weights.items()}


def official(weights: Weights) -> dict[str, Any]:
    return {
        "state_dict": weights | fill(OTHER_WEIGHTS),
        "epoch": 117,
        "global_step": 16_500,
        "pytorch-lightning_version": "1.4.2",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
    }


def bundled(weights: Weights) -> tuple[Weights, dict[str, str]]:
    shapes = {"cond_stage_model.prompt": (4, 8)}
    shapes |= {key: OTHER_WEIGHTS[key] for key in OTHER_WEIGHTS if key.startswith((UNET, "first"))}
    return weights | fill(shapes), description(bundled={"unet": {"model_channels": 32}})


def description(**changes: Any) -> dict[str, str]:
    header = {
        "format_version": 1,
        "name": "small",
        "prediction_type": "v_prediction",
        "encoder": dataclasses.asdict(TINY),
        "license": "GPL-3.0-or-later",
        "bundled": None,
    }
    return {"pfstorer_restorer": json.dumps(header | changes)}


LAYOUTS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "official": official,
    "extracted": lambda weights: dict(weights),
    "extracted without prefix": without_unet_prefix,
    "extracted and wrapped": lambda weights: {"state_dict": without_unet_prefix(weights)},
}


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(
    layout: str, suffix: str, weights: Weights, goldens: Goldens, tmp_path: Path
) -> None:
    path, content = tmp_path / f"stablesr.{suffix}", LAYOUTS[layout](weights)
    if suffix == "ckpt":
        torch.save(content, path)
    else:
        safetensors.torch.save_file(content.get("state_dict", content), path)
    restorer = restorers.load(path)
    assert restorer.sites == tuple(SITES)
    assert restorer.bundled_state is None
    assert restorer.info == restorers.RestorerInfo(
        "stablesr", None, TINY, "", None, restorers.fingerprint(weights)
    )
    tensors = goldens.tensors("time_aware_encoder_tiny")
    for number, level in enumerate(restorer(tensors["a.latent"], torch.tensor([999]))):
        assert relative_l2(level, tensors[f"a.level{number}"]) <= TOLERANCE
    for site, channels in SITES.items():
        gamma = restorer.sft(site).mlp_gamma.weight
        key = f"{UNET}{site}.spade.mlp_gamma.weight"
        assert torch.equal(gamma, deterministic_tensor(key, (channels, 32, 3, 3)))


def test_official_keys_and_shapes(goldens: Goldens) -> None:
    layout = goldens.json("checkpoint_layout.json")
    expected = layout["structcond"] | layout["sft"]
    meta = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    # Refused for having no values, hence after all keys and shapes were found to be right.
    with pytest.raises(PFStorerError, match="plain floating-point weights"):
        BaseRestorer.from_state_dict(meta)


@pytest.mark.slow
def test_official_size(goldens: Goldens, tmp_path: Path) -> None:
    layout = goldens.json("checkpoint_layout.json")
    weights = fill(layout["structcond"] | layout["sft"])
    torch.save(official(weights), tmp_path / "stablesr_000117.ckpt")
    restorer = restorers.load(tmp_path / "stablesr_000117.ckpt")
    assert restorer.info.encoder == EncoderConfig()
    assert len(restorer.sites) == 22
    assert sum(weight.numel() for weight in restorer.parameters()) == 105_514_240
    restorers.save(restorer, tmp_path / "own.safetensors")
    again = restorers.load(tmp_path / "own.safetensors", dtype=torch.float16)
    assert again.info.fingerprint == restorer.info.fingerprint
    tensors = goldens.tensors("time_aware_encoder_full")
    level = restorer(tensors["a.latent"], torch.tensor([999]))[0]
    (stride,) = {
        case["channel_stride"]
        for case in goldens.items["time_aware_encoder_full"]["cases"]
        if case["case"] == "a"
    }
    assert relative_l2(level[:, ::stride], tensors["a.level0"]) <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(4, 32, 64, 2, (4, 2, 1), (1, 1, 2, 2)),
        EncoderConfig(8, 32, 32, 1, (4,), (1, 2, 3)),
        EncoderConfig(16, 64, 32, 3, (), (1, 2)),
        EncoderConfig(4, 32, 96, 1, (8, 1), (2, 1, 1, 4)),
        EncoderConfig(4, 32, 32, 1, (1,), (1,)),
    ],
)
def test_encoder_is_inferred(config: EncoderConfig) -> None:
    untrained = BaseRestorer.initialise({"middle_block.0": 32}, config, hidden=8)
    assert BaseRestorer.from_state_dict(untrained.weights()).info.encoder == config


def test_heads_come_from_the_description(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, num_heads=8)
    untrained = BaseRestorer.initialise(SITES, config, hidden=32)
    restorers.save(untrained, tmp_path / "r.safetensors")
    assert restorers.load(tmp_path / "r.safetensors").info.encoder.num_heads == 8


def test_round_trip(restorer: BaseRestorer, tmp_path: Path) -> None:
    restorer.info = dataclasses.replace(
        restorer.info, name="small", prediction_type="epsilon", license="CC0-1.0"
    )
    restorers.save(restorer, tmp_path / "r.safetensors")
    again = restorers.load(tmp_path / "r.safetensors")
    assert again.info == restorer.info
    assert again.sites == restorer.sites
    assert again.bundled_state is None
    for key, value in restorer.weights().items():
        assert torch.equal(value, again.weights()[key])


def test_bundled_round_trip(weights: Weights, tmp_path: Path) -> None:
    content, metadata = bundled(weights)
    safetensors.torch.save_file(content, tmp_path / "mini.safetensors", metadata)
    for _ in range(2):
        restorer = restorers.load(tmp_path / "mini.safetensors")
        assert restorer.info.bundled == {"unet": {"model_channels": 32}}
        assert restorer.info.prediction_type == "v_prediction"
        assert restorer.info.fingerprint == restorers.fingerprint(weights)
        assert restorer.bundled_state is not None
        assert restorer.bundled_state.keys() == content.keys() - weights.keys()
        assert not any(key.startswith(UNET) for key in restorer.state_dict())
        for key, value in restorer.state_dict_for_saving().items():
            assert torch.equal(value, content[key])
        restorers.save(restorer, tmp_path / "mini.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types(dtype: torch.dtype, weights: Weights) -> None:
    stored = {key: value.to(dtype) for key, value in weights.items()}
    as_stored = BaseRestorer.from_state_dict(stored)
    assert {weight.dtype for weight in as_stored.parameters()} == {dtype}
    assert as_stored.info.fingerprint == restorers.fingerprint(stored)
    single = BaseRestorer.from_state_dict(stored, dtype=torch.float32)
    assert {weight.dtype for weight in single.parameters()} == {torch.float32}
    assert single.info == as_stored.info


def test_mixed_types_become_float32(weights: Weights) -> None:
    key = next(iter(weights))
    restorer = BaseRestorer.from_state_dict(weights | {key: weights[key].half()})
    assert {weight.dtype for weight in restorer.parameters()} == {torch.float32}


def test_fingerprint_tells_weights_apart(weights: Weights) -> None:
    first, second = list(weights)[:2]
    assert restorers.fingerprint(weights) == restorers.fingerprint(dict(reversed(weights.items())))
    nudged = weights[first].clone()
    nudged.view(-1)[0] += 1e-6
    changes: list[Mapping[str, Tensor]] = [
        weights | {first: nudged},
        weights | {first: weights[first].half()},
        weights | {first: weights[first].unsqueeze(0)},
        {key: value for key, value in weights.items() if key != second},
    ]
    prints = [restorers.fingerprint(change) for change in (weights, *changes)]
    assert len(set(prints)) == len(prints)


def test_restorer_outlives_its_file(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "r.ckpt"
    torch.save(weights, path)
    restorer = restorers.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    for key, value in restorer.weights().items():
        assert torch.equal(value, weights[key])


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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "holds no weights"),
        (["betas"], "holds 1 weights of another kind, for example 'betas'"),
        ([UNET + "input_blocks.0.0.weight", "first_stage_model.x"], "is a Stable Diffusion check"),
        (["lora_unet_mid_block.lora_up.weight"], "is a LoRA"),
        (["control_model.input_hint_block.0.weight"], "is a ControlNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], r"is an autoencoder \(VAE\)"),
        (["decoder.conv_in.weight", "decoder.fusion_layer_1.x"], r"feature wrapping \(CFW\)"),
        (["structcond_stage_model.x"], "holds only the encoder of a restorer without its SFT"),
        (["input_blocks.1.0.spade.x"], "holds only the SFT blocks of a restorer without its enc"),
        (["model_ema.structcond_stage_modelx"], "of another kind"),
    ],
)
def test_wrong_kinds(keys: list[str], message: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {key: torch.ones(2) for key in keys}}, tmp_path / "w.ckpt")
    with pytest.raises(PFStorerError, match=rf"^'w.ckpt' .*{message}.*; a restorer file .* needed"):
        restorers.load(tmp_path / "w.ckpt")


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
    ("metadata", "message"),
    [
        ({"pfstorer_restorer": "{"}, "damaged description"),
        ({"pfstorer_restorer": "[]"}, "damaged description"),
        ({"pfstorer_restorer": "{}"}, "damaged description .*'format_version'"),
        (description(format_version=2), "format version 2, but this plugin reads .* update"),
        (description(prediction_type="x0"), "damaged description .*The prediction type is 'x0'"),
        (description(encoder={"depth": 3}), "damaged description"),
        (description(encoder={"channel_mult": 3}), "damaged description"),
        (description(bundled=[1]), "damaged description .*bundled"),
        (description(encoder={"out_channels": 32}), "of a wrong shape|lacks"),
    ],
)
def test_broken_descriptions(metadata: dict[str, str], message: str, weights: Weights) -> None:
    with pytest.raises(PFStorerError, match=f"^This state dict .*({message})"):
        BaseRestorer.from_state_dict(weights, metadata)


def test_unknown_prediction_type() -> None:
    with pytest.raises(PFStorerError, match="'v'; expected one of epsilon, v_prediction"):
        BaseRestorer.initialise({"middle_block.0": 32}, TINY, prediction_type="v")


def test_broken_training_is_not_saved(restorer: BaseRestorer, tmp_path: Path) -> None:
    restorers.save(restorer, tmp_path / "r.safetensors")
    with torch.no_grad():
        restorer.sft("middle_block.2").mlp_beta.bias[0] = float("nan")
    with pytest.raises(PFStorerError, match="NaN or infinite values"):
        restorers.save(restorer, tmp_path / "r.safetensors")
    restorers.load(tmp_path / "r.safetensors")


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
    description = json.loads(metadata[restorers.METADATA_KEY])
    description["encoder"][name] = value
    with pytest.raises(PFStorerError, match=r"shapes that make no|wrong shape|lacks|description"):
        BaseRestorer.from_state_dict(content, {restorers.METADATA_KEY: json.dumps(description)})


def test_a_description_nested_too_deeply(weights: Weights) -> None:
    deep = '{"format_version": 1, "name": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(PFStorerError, match=r"has a damaged description in its metadata"):
        BaseRestorer.from_state_dict(weights, {restorers.METADATA_KEY: deep})
