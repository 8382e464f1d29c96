import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden_weights import TOLERANCE, Goldens, deterministic_tensor, fill, relative_l2
from small_restorers import LAYOUTS, SITES, TINY, UNET, Weights, bundled, official

from pfstorer_core.errors import PFStorerError
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.restorers.files import load, save
from pfstorer_core.restorers.info import RestorerInfo
from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
from pfstorer_core.weights.digests import fingerprint


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
    restorer = load(path)
    assert restorer.sites == tuple(SITES)
    assert restorer.bundled_state is None
    assert restorer.info == RestorerInfo("stablesr", None, TINY, "", None, fingerprint(weights))
    tensors = goldens.tensors("time_aware_encoder_tiny")
    for number, level in enumerate(restorer(tensors["a.latent"], torch.tensor([999]))):
        assert relative_l2(level, tensors[f"a.level{number}"]) <= TOLERANCE
    for site, channels in SITES.items():
        gamma = restorer.sft(site).mlp_gamma.weight
        key = f"{UNET}{site}.spade.mlp_gamma.weight"
        assert torch.equal(gamma, deterministic_tensor(key, (channels, 32, 3, 3)))


@pytest.mark.slow
def test_official_size(goldens: Goldens, tmp_path: Path) -> None:
    layout = goldens.json("checkpoint_layout.json")
    weights = fill(layout["structcond"] | layout["sft"])
    torch.save(official(weights), tmp_path / "stablesr_000117.ckpt")
    restorer = load(tmp_path / "stablesr_000117.ckpt")
    assert restorer.info.config == EncoderConfig()
    assert len(restorer.sites) == 22
    assert sum(weight.numel() for weight in restorer.parameters()) == 105_514_240
    save(restorer, tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors", dtype=torch.float16)
    assert again.info.fingerprint == restorer.info.fingerprint
    tensors = goldens.tensors("time_aware_encoder_full")
    level = restorer(tensors["a.latent"], torch.tensor([999]))[0]
    (stride,) = {
        case["channel_stride"]
        for case in goldens.items["time_aware_encoder_full"]["cases"]
        if case["case"] == "a"
    }
    assert relative_l2(level[:, ::stride], tensors["a.level0"]) <= TOLERANCE


def test_round_trip(restorer: BaseRestorer, tmp_path: Path) -> None:
    restorer.info = dataclasses.replace(
        restorer.info, name="small", prediction_type="epsilon", license="CC0-1.0"
    )
    save(restorer, tmp_path / "r.safetensors")
    again = load(tmp_path / "r.safetensors")
    assert again.info == restorer.info
    assert again.sites == restorer.sites
    assert again.bundled_state is None
    for key, value in restorer.weights().items():
        assert torch.equal(value, again.weights()[key])


def test_bundled_round_trip(weights: Weights, tmp_path: Path) -> None:
    content, metadata = bundled(weights)
    safetensors.torch.save_file(content, tmp_path / "mini.safetensors", metadata)
    for _ in range(2):
        restorer = load(tmp_path / "mini.safetensors")
        assert restorer.info.bundled == {"unet": {"model_channels": 32}}
        assert restorer.info.prediction_type == "v_prediction"
        assert restorer.info.fingerprint == fingerprint(weights)
        assert restorer.bundled_state is not None
        assert restorer.bundled_state.keys() == content.keys() - weights.keys()
        assert not any(key.startswith(UNET) for key in restorer.state_dict())
        for key, value in restorer.state_dict_for_saving().items():
            assert torch.equal(value, content[key])
        save(restorer, tmp_path / "mini.safetensors")


def test_restorer_outlives_its_file(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "r.ckpt"
    torch.save(weights, path)
    restorer = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    for key, value in restorer.weights().items():
        assert torch.equal(value, weights[key])


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
        (["structcond_stage_model.x"], r"\(only the encoder, without its SFT blocks\)"),
        (["input_blocks.1.0.spade.x"], r"\(only the SFT blocks, without their encoder\)"),
        (["model_ema.structcond_stage_modelx"], "of another kind"),
    ],
)
def test_wrong_kinds(keys: list[str], message: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {key: torch.ones(2) for key in keys}}, tmp_path / "w.ckpt")
    with pytest.raises(PFStorerError, match=rf"^'w.ckpt' .*{message}.*StableSR family"):
        load(tmp_path / "w.ckpt")


def test_broken_training_is_not_saved(restorer: BaseRestorer, tmp_path: Path) -> None:
    save(restorer, tmp_path / "r.safetensors")
    with torch.no_grad():
        restorer.sft("middle_block.2").mlp_beta.bias[0] = float("nan")
    with pytest.raises(PFStorerError, match="NaN or infinite values"):
        save(restorer, tmp_path / "r.safetensors")
    load(tmp_path / "r.safetensors")
