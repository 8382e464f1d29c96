"""Autoencoders with controllable feature wrapping, as ComfyUI's VAE."""

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from golden_weights import TOLERANCE, Goldens, fill, relative_l2, rounding_limit
from tiny_models import image
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.load.cfw import FusionVAE, load_cfw
from pfstorer_core.restorers.stablesr.fusion import FusionBlock

OFFICIAL = {  # Stable Diffusion's autoencoder
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class RunsOnLoad:
    """Unpickles by calling a function."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


def shapes(config: dict[str, Any], levels: tuple[int, ...] = (1, 2)) -> dict[str, torch.Size]:
    """Returns the shapes of a CFW autoencoder's tensors by name."""
    with torch.device("meta"):
        model = AutoencoderKL(ddconfig=config, embed_dim=4)
        for level in levels:
            channels = config["ch"] * config["ch_mult"][level]
            model.decoder.add_module(f"fusion_layer_{level}", FusionBlock(channels, channels))
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def goldens() -> Goldens:
    return Goldens.find()


@pytest.fixture(scope="module")
def tiny(goldens: Goldens) -> dict[str, Tensor]:
    """The golden vectors."""
    return goldens.tensors("cfw_tiny")


@pytest.fixture(scope="module")
def weights(goldens: Goldens) -> dict[str, Tensor]:
    """The weights of the golden vectors."""
    item = goldens.items["cfw_tiny"]
    weights = fill(shapes(item["config"]))
    assert len(weights) == item["num_keys"]
    return weights


@pytest.fixture(scope="module")
def path(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it."""
    path = tmp_path_factory.mktemp("vae") / "cfw.ckpt"
    losses = {"loss.logvar": torch.zeros(()), "loss.perceptual_loss.lin0": torch.ones(1, 2)}
    torch.save({"epoch": 10, "state_dict": weights | losses}, path)
    return path


@pytest.fixture(scope="module")
def vae(path: Path) -> FusionVAE:
    return load_cfw(path)


@pytest.fixture
def inputs(tiny: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Golden latent, and LQ image (B, H, W, 3) in [0, 1]."""
    return tiny["a.latent"], (tiny["a.lq_image"].movedim(1, -1) + 1) / 2


def latents(batch: int, height: int, width: int, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(batch, channels, height, width, generator=generator)


def test_weights_that_are_not_finite_are_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    spoilt = {key: value.clone() for key, value in weights.items()}
    next(iter(spoilt.values())).view(-1)[0] = float("nan")
    torch.save({"state_dict": spoilt}, tmp_path / "cfw.ckpt")
    with pytest.raises(PFStorerError, match=r"'cfw.ckpt' has NaN or infinite values in "):
        load_cfw(tmp_path / "cfw.ckpt")


class TestGoldens:
    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    def test_decoded(
        self, path: Path, inputs: tuple[Tensor, Tensor], tiny: dict[str, Tensor], weight: float
    ) -> None:
        vae = load_cfw(path)
        vae.process_output = lambda pixels: pixels  # the vectors are in [-1, 1], not clamped
        decoded = vae.decode_with(*inputs, weight).movedim(-1, 1)
        assert relative_l2(decoded, tiny[f"a.decoded_w{weight}"]) <= TOLERANCE

    def test_encoder(self, vae: FusionVAE, tiny: dict[str, Tensor]) -> None:
        features = vae._encoder_features(tiny["a.lq_image"])
        assert features.keys() == {1, 2}
        assert relative_l2(features[1], tiny["a.enc_fea0"]) <= TOLERANCE
        assert relative_l2(features[2], tiny["a.enc_fea1"]) <= TOLERANCE
        model = vae.first_stage_model
        moments = model.quant_conv(model.encoder(tiny["a.lq_image"]))
        assert relative_l2(moments, tiny["a.encoder_moments"]) <= TOLERANCE


class TestDecoding:
    def test_weight_zero_is_the_plain_decoder(
        self, vae: FusionVAE, weights: dict[str, Tensor], goldens: Goldens
    ) -> None:
        import comfy.sd

        config = {"ddconfig": goldens.items["cfw_tiny"]["config"], "embed_dim": 4}
        plain = comfy.sd.VAE(sd=dict(weights), config={"params": config})
        samples, lq = latents(3, 5, 7), image((40, 56), 3)
        expected = plain.decode(samples)
        assert torch.equal(vae.decode_with(samples, lq, 0.0), expected)
        assert torch.equal(vae.decode(samples), expected)
        assert torch.equal(vae.encode(lq), plain.encode(lq))

    def test_the_weight_is_a_dial(self, vae: FusionVAE, inputs: tuple[Tensor, Tensor]) -> None:
        plain = vae.decode(inputs[0])
        changes = [(vae.decode_with(*inputs, w) - plain).norm() for w in (0.0, 0.25, 0.5, 1.0)]
        assert 0 == changes[0] < changes[1] < changes[2] < changes[3]

    def test_the_lq_image_counts(self, vae: FusionVAE) -> None:
        samples = latents(1, 4, 4)
        one, two = (vae.decode_with(samples, image((32, 32), seed=s), 1.0) for s in (0, 1))
        assert (one - two).abs().max() > 1e-3

    @pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6)])
    def test_a_batch_is_its_items_one_by_one(self, vae: FusionVAE, size: tuple[int, int]) -> None:
        samples, lq = latents(3, *size), image((size[0] * 8, size[1] * 8), 3)
        together = vae.decode_with(samples, lq, 0.7)
        assert together.shape == (3, size[0] * 8, size[1] * 8, 3)
        assert 0 <= together.min() and together.max() <= 1
        alone = [vae.decode_with(samples[i : i + 1], lq[i : i + 1], 0.7) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))

    def test_items_that_do_not_fit_at_once_follow_each_other(
        self, path: Path, vae: FusionVAE
    ) -> None:
        narrow = load_cfw(path)
        narrow.memory_used_decode = lambda shape, dtype: 1e18  # bytes
        samples, lq = latents(3, 4, 5), image((32, 40), 3)
        batches: list[int] = []
        hook = narrow.first_stage_model.decoder.conv_in.register_forward_pre_hook(
            lambda module, inputs: batches.append(len(inputs[0]))
        )
        decoded = narrow.decode_with(samples, lq, 1.0)
        hook.remove()
        assert batches == [1, 1, 1]
        torch.testing.assert_close(decoded, vae.decode_with(samples, lq, 1.0))

    def test_no_call_leaves_traces(self, vae: FusionVAE, inputs: tuple[Tensor, Tensor]) -> None:
        samples, lq = inputs
        before = {key: value.clone() for key, value in vae.get_sd().items()}
        given = samples.clone(), lq.clone()
        plain = vae.decode(samples)
        fused = vae.decode_with(samples, lq, 1.0)

        def out_of_memory(module: Any, inputs: Any) -> None:
            raise torch.OutOfMemoryError("no memory left")

        block = vae.first_stage_model.decoder.fusion_layer_1
        hook = block.register_forward_pre_hook(out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode_with(samples, lq, 1.0)
        hook.remove()
        assert not any(module._forward_pre_hooks for module in vae.first_stage_model.modules())
        assert torch.equal(vae.decode(samples), plain)
        assert torch.equal(vae.decode_with(samples, lq, 1.0), fused)
        assert torch.equal(samples, given[0]) and torch.equal(lq, given[1])
        after = vae.get_sd()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(
        self,
        weights: dict[str, Tensor],
        vae: FusionVAE,
        inputs: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> None:
        half = FusionVAE(weights, "half", dtype=dtype)
        assert {parameter.dtype for parameter in half.first_stage_model.parameters()} == {dtype}
        limit = rounding_limit(dtype, half.first_stage_model)
        assert relative_l2(half.decode_with(*inputs, 1.0), vae.decode_with(*inputs, 1.0)) < limit

    @pytest.mark.parametrize("weight", [-0.1, 1.01, float("nan")])
    def test_other_weights_are_refused(
        self, vae: FusionVAE, inputs: tuple[Tensor, Tensor], weight: float
    ) -> None:
        with pytest.raises(PFStorerError, match=r"fidelity weight is .*; give a number from 0"):
            vae.decode_with(*inputs, weight)

    @pytest.mark.parametrize(
        "shape", [(1, 64, 40, 3), (1, 64, 48, 4), (2, 64, 48, 3), (64, 48, 3), (1, 64, 48, 1)]
    )
    def test_an_lq_image_of_another_shape_is_refused(
        self, vae: FusionVAE, inputs: tuple[Tensor, Tensor], shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(PFStorerError, match=r"LQ image .* needs \(1, 64, 48, 3\)"):
            vae.decode_with(inputs[0], torch.zeros(shape), 0.5)

    @pytest.mark.parametrize("shape", [(1, 16, 8, 6), (4, 8, 6), (1, 4, 0, 6)])
    def test_other_latents_are_refused(self, vae: FusionVAE, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match=r"latent has the shape .* takes \(batch, 4,"):
            vae.decode_with(torch.zeros(shape), torch.zeros(1, 64, 48, 3), 0.5)


class TestMemory:
    def test_fusing_takes_more_than_the_plain_decoder(self, vae: FusionVAE) -> None:
        shape = (1, 4, 64, 48)
        plain = vae.memory_used_decode(shape, torch.float32)
        assert plain < vae.memory_used_decode_with(shape, torch.float32) < 1.5 * plain

    def test_the_estimate_grows_with_area_and_type(self, vae: FusionVAE) -> None:
        estimate = vae.memory_used_decode_with
        small = estimate((1, 4, 32, 32), torch.float16)
        assert estimate((1, 4, 64, 32), torch.float16) == 2 * small
        assert estimate((1, 4, 32, 32), torch.float32) == 2 * small

    def test_the_fusion_blocks_belong_to_the_model_that_is_moved(self, vae: FusionVAE) -> None:
        tensors = vae.first_stage_model.state_dict().values()
        stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert vae.patcher.model is vae.first_stage_model
        assert vae.model_size() == vae.patcher.model_size() == stored

    def test_comfyui_can_make_a_second_copy(self, vae: FusionVAE) -> None:
        build, arguments = vae.patcher.cached_patcher_init
        copy = build(*arguments, disable_dynamic=True).model
        assert copy is not vae.first_stage_model
        assert all(
            torch.equal(copy.state_dict()[k].cpu(), v.cpu()) for k, v in vae.get_sd().items()
        )


class TestFiles:
    def test_the_official_layout(self, goldens: Goldens) -> None:
        official = goldens.items["cfw_tiny"]["official"]
        layout = shapes(OFFICIAL)
        fusion = goldens.json("checkpoint_layout.json")["cfw_fusion"]
        assert {k: list(s) for k, s in layout.items() if "fusion" in k} == fusion
        # one number stands for each tensor, so that nothing large is written
        zeros = {key: torch.zeros(1, dtype=torch.bfloat16).expand(s) for key, s in layout.items()}
        vae = FusionVAE(zeros, "official", dtype=torch.bfloat16)
        loaded = vae.get_sd()
        assert len(loaded) == official["total_keys_without_loss"]
        assert (
            sum(v.numel() for k, v in loaded.items() if "fusion" in k)
            == (official["fusion_params"])
        )
        assert {key: value.shape for key, value in loaded.items()} == layout
        assert (vae.upscale_ratio, vae.downscale_ratio, vae.latent_channels) == (8, 8, 4)

    def test_a_safetensors_file_and_a_flat_checkpoint_give_the_same(
        self,
        vae: FusionVAE,
        weights: dict[str, Tensor],
        inputs: tuple[Tensor, Tensor],
        tmp_path: Path,
    ) -> None:
        safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
        torch.save(weights, tmp_path / "w.pth")
        expected = vae.decode_with(*inputs, 1.0)
        for name in ("w.safetensors", "w.pth"):
            assert torch.equal(load_cfw(tmp_path / name).decode_with(*inputs, 1.0), expected)

    def test_the_file_may_change_after_it_was_read(
        self, path: Path, inputs: tuple[Tensor, Tensor], vae: FusionVAE, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy.ckpt"
        copy.write_bytes(path.read_bytes())
        loaded = load_cfw(copy)
        copy.write_bytes(bytes(copy.stat().st_size))
        assert torch.equal(loaded.decode_with(*inputs, 1.0), vae.decode_with(*inputs, 1.0))

    def test_other_levels_and_depths_are_found_by_their_names(self, goldens: Goldens) -> None:
        config = {**goldens.items["cfw_tiny"]["config"], "ch_mult": [1, 1, 2], "num_res_blocks": 2}
        vae = FusionVAE(fill(shapes(config, levels=(1,))), "small")
        assert (vae.upscale_ratio, vae.downscale_ratio) == (4, 4)
        samples, lq = latents(1, 6, 5), image((24, 20))
        fused = vae.decode_with(samples, lq, 1.0)
        assert fused.shape == lq.shape
        assert (fused - vae.decode(samples)).abs().max() > 1e-3
        assert vae.encode(lq).shape == samples.shape

    def test_a_plain_vae_is_named(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        plain = {key: value for key, value in weights.items() if "fusion" not in key}
        safetensors.torch.save_file(plain, tmp_path / "plain.safetensors")
        with pytest.raises(PFStorerError, match=r"'plain.safetensors' is a plain VAE without"):
            load_cfw(tmp_path / "plain.safetensors")

    def test_another_file_of_weights_is_named(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"lora.up": torch.ones(2)}, tmp_path / "lora.safetensors")
        with pytest.raises(PFStorerError, match=r"'lora.safetensors' is no autoencoder"):
            load_cfw(tmp_path / "lora.safetensors")

    @pytest.mark.parametrize(
        ("key", "replacement", "message"),
        [
            ("decoder.mid.block_1.norm1.weight", None, r"lacks 1 .*mid\.block_1\.norm1\.weight"),
            ("decoder.fusion_layer_2.encode_enc_3.conv2.bias", None, "lacks 1 .*enc_3.conv2.bias"),
            ("decoder.fusion_layer_1.encode_enc_1.conv1.weight", None, "make up no CFW auto"),
            ("post_quant_conv.weight", None, "make up no CFW auto"),
            ("encoder.conv_in.weight", torch.ones(3), "make up no CFW auto"),
            ("encoder.conv_in.weight", torch.ones(0, 3, 3, 3), "make up no CFW auto"),
            ("encoder.conv_in.weight", torch.ones(31, 3, 3, 3), "make up no CFW auto"),
            (
                "decoder.up.1.block.0.conv1.bias",
                torch.ones(63),
                r"wrong shape, .*conv1\.bias",
            ),
            (
                "decoder.up.9.block.0.conv1.bias",
                torch.ones(1),
                r"no known .*up\.9\.block",
            ),
        ],
    )
    def test_faults_of_the_content_are_named(
        self, weights: dict[str, Tensor], key: str, replacement: Tensor | None, message: str
    ) -> None:
        spoilt = dict(weights)
        spoilt.pop(key, None)
        if replacement is not None:
            spoilt[key] = replacement
        with pytest.raises(PFStorerError, match=f"'spoilt' .*{message}"):
            FusionVAE(spoilt, "spoilt")

    @pytest.mark.parametrize("level", [0, 3, 7])
    def test_a_fusion_layer_of_no_level_is_named(
        self, weights: dict[str, Tensor], level: int
    ) -> None:
        renamed = {k.replace("layer_2", f"layer_{level}"): v for k, v in weights.items()}
        with pytest.raises(PFStorerError, match=rf"a fusion layer {level} that fits no level"):
            FusionVAE(renamed, "renamed")

    def test_a_damaged_file_is_named(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "half.ckpt").write_bytes(path.read_bytes()[:10_000])
        with pytest.raises(PFStorerError, match=r"'half.ckpt' is truncated, damaged"):
            load_cfw(tmp_path / "half.ckpt")

    def test_code_in_a_file_is_refused(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({"state_dict": weights, "callback": RunsOnLoad()}, tmp_path / "evil.ckpt")
        with pytest.raises(PFStorerError, match=r"'evil.ckpt' asks for .*getpid .*could run code"):
            load_cfw(tmp_path / "evil.ckpt")


class TestNode:
    @pytest.fixture
    def name(self, path: Path, base_directory: Path) -> str:
        """The name of a CFW file among ComfyUI's models."""
        folder = base_directory / "models" / "vae"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny_cfw.ckpt").write_bytes(path.read_bytes())
        return "tiny_cfw.ckpt"

    def test_a_listed_file_becomes_a_vae(
        self, pack: Any, name: str, vae: FusionVAE, inputs: tuple[Tensor, Tensor]
    ) -> None:
        node = pack.node("PFStorerLoadCFW")
        (entry,) = node.define_schema().inputs
        assert (entry.id, name in entry.options) == ("cfw", True)
        (loaded,) = node.execute(name).args
        assert torch.equal(loaded.decode_with(*inputs, 0.5), vae.decode_with(*inputs, 0.5))

    def test_it_works_as_a_plain_vae_elsewhere(
        self, pack: Any, name: str, vae: FusionVAE, inputs: tuple[Tensor, Tensor]
    ) -> None:
        import nodes

        (loaded,) = pack.node("PFStorerLoadCFW").execute(name).args
        (decoded,) = nodes.VAEDecode().decode(loaded, {"samples": inputs[0]})
        assert torch.equal(decoded, vae.decode(inputs[0]))
        (encoded,) = nodes.VAEEncode().encode(loaded, inputs[1])
        assert torch.equal(encoded["samples"], vae.encode(inputs[1]))
        (tiled,) = nodes.VAEDecodeTiled().decode(loaded, {"samples": inputs[0]}, 64, 16)
        assert tiled.shape == decoded.shape

    def test_a_changed_file_is_loaded_again(
        self, pack: Any, name: str, base_directory: Path
    ) -> None:
        node = pack.node("PFStorerLoadCFW")
        before = node.fingerprint_inputs(name)
        assert node.fingerprint_inputs(name) == before
        os.utime(base_directory / "models" / "vae" / name, (0, 0))
        assert node.fingerprint_inputs(name) != before

    def test_a_missing_file_is_named(self, pack: Any) -> None:
        with pytest.raises(ValueError, match=r"no VAE 'gone\.ckpt'; put the file into .*vae"):
            pack.node("PFStorerLoadCFW").execute("gone.ckpt")
