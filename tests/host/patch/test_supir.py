"""Identities beside core SUPIR, whose own picture stays as it is without them."""

import copy
import dataclasses
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.sample
import pytest
import torch
from golden_weights import relative_l2
from tiny_models import image, random_adapter
from tiny_supir import UNET, model_patch, random_weights, sdxl, with_supir

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import base_of, pooled_embedding
from pfstorer_core.host.load.supir import load_supir, network_digest
from pfstorer_core.host.patch.applied import check_identity_fit
from pfstorer_core.host.sites import find_identity_sites

SIZE = 64  # px; latents of 8 x 8


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any, Any]:
    return sdxl()


@pytest.fixture(scope="module")
def supir(plain: tuple[Any, Any, Any]) -> Any:
    """MODEL that core SUPIR restores one picture with."""
    return with_supir(plain[0], plain[2], image((SIZE, SIZE)), restore_cfg=4.0)


@pytest.fixture(scope="module")
def loaded(plain: tuple[Any, Any, Any], supir: Any) -> tuple[Any, Any, Any]:
    return load_supir(supir, plain[1], plain[2])


def sample(
    model: Any, clip: Any, cfg: float = 2.0, batch: int = 1, positive: Any | None = None
) -> torch.Tensor:
    latent = torch.zeros(batch, 4, SIZE // 8, SIZE // 8)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("x"))
    noise = comfy.sample.prepare_noise(latent, 1)
    args = 2, cfg, "euler", "normal", positive or prompt, prompt, latent
    return comfy.sample.sample(model, noise, *args, disable_pbar=True, seed=1)


class TestAsWithoutUs:
    def test_loaded_it_gives_the_same_bits(self, supir: Any, loaded: Any) -> None:
        alone = sample(supir, loaded[1])
        assert torch.equal(sample(loaded[0], loaded[1]), alone)
        assert alone.isfinite().all() and alone.std() > 0.01

    @pytest.mark.parametrize("cfg", [1.0, 2.0])
    def test_at_gamma_0_it_gives_the_same_bits(self, cfg: float, supir: Any, loaded: Any) -> None:
        ada = random_adapter(loaded[0])
        applied = host.apply_identity(loaded[0], ada, 0.0)
        alone = sample(supir, loaded[1], cfg, batch=2)
        assert torch.equal(sample(applied, loaded[1], cfg, batch=2), alone)

    def test_an_adapter_changes_it_and_the_given_model_stays(self, supir: Any, loaded: Any) -> None:
        alone = sample(supir, loaded[1])
        applied = host.apply_identity(loaded[0], random_adapter(loaded[0]))
        assert relative_l2(sample(applied, loaded[1]), alone) > 1e-3
        assert torch.equal(sample(loaded[0], loaded[1]), alone)
        assert torch.equal(sample(supir, loaded[1]), alone)

    def test_two_branches_do_not_touch(self, loaded: Any) -> None:
        first = host.apply_identity(loaded[0], random_adapter(loaded[0], 1))
        second = host.apply_identity(loaded[0], random_adapter(loaded[0], 2))
        before = sample(first, loaded[1])
        other = sample(second, loaded[1])
        assert relative_l2(other, before) > 1e-3
        assert torch.equal(sample(first, loaded[1]), before)


class TestOtherNodes:
    """What stands beside SUPIR does what it does without us."""

    def check(self, plain: Any, model: Any, positive: Any | None = None) -> None:
        """Compares SUPIR on a patched SDXL, alone and with us, with SUPIR on the plain one."""
        _, clip, vae = plain
        picture, patch = image((SIZE, SIZE)), model_patch()
        alone = with_supir(model, vae, picture, patch)
        loaded = load_supir(alone, clip, vae)[0]
        ada = random_adapter(loaded)
        expected = sample(alone, clip, positive=positive)
        base = sample(host.apply_identity(loaded, ada, 0.0), clip, positive=positive)
        assert torch.equal(base, expected)
        unpatched = sample(with_supir(plain[0], vae, picture, patch), clip)
        assert relative_l2(expected, unpatched) > 1e-4
        changed = sample(host.apply_identity(loaded, ada), clip, positive=positive)
        assert changed.isfinite().all() and relative_l2(changed, expected) > 1e-3

    def test_a_lora(self, plain: Any) -> None:
        model = plain[0].clone()
        key = "diffusion_model.input_blocks.4.0.in_layers.2.weight"
        shape = model.model_state_dict()[key].shape
        model.add_patches({key: ("diff", (0.1 * torch.randn(shape),))})
        self.check(plain, model)

    def test_freeu(self, plain: Any) -> None:
        from comfy_extras.nodes_freelunch import FreeU_V2

        self.check(plain, FreeU_V2.execute(plain[0], 1.3, 1.4, 0.9, 0.2).args[0])

    def test_a_controlnet(self, plain: Any) -> None:
        left_out = ("out_channels", "transformer_depth_output")
        network = comfy.cldm.cldm.ControlNet(
            **{k: copy.copy(v) for k, v in UNET.items() if k not in left_out},
            hint_channels=3,
            dtype=torch.float32,
            operations=comfy.ops.manual_cast,
        )
        network.load_state_dict(random_weights(network, 8))
        control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
        control = control.set_cond_hint(torch.rand(1, 3, SIZE, SIZE), 0.8)
        ((cond, options),) = plain[1].encode_from_tokens_scheduled(plain[1].tokenize("x"))
        positive = [[cond, {**options, "control": control, "control_apply_to_uncond": True}]]
        self.check(plain, plain[0], positive)


class TestBase:
    def test_what_the_base_is(self, plain: Any, loaded: Any) -> None:
        base = base_of(loaded[0])
        assert (base.info.name, base.trained_size) == ("SUPIR", 512)
        assert (base.cell, base.latent_channels, base.size_step) == (8, 4, 4)
        assert base.pooled_dim == plain[0].model.model_config.unet_config["adm_in_channels"]
        assert len(find_identity_sites(loaded[0].model.diffusion_model)) == 16

    def test_the_pooled_text_is_what_the_host_makes(self, plain: Any, loaded: Any) -> None:
        base, model = base_of(loaded[0]), plain[0].model
        found = pooled_embedding(loaded[0], base.empty_prompt, (64, 96))
        noise = torch.zeros(1, 4, 8, 12)
        ((cond, options),) = base.empty_prompt
        conds = model.extra_conds(
            noise=noise, device="cpu", width=96, height=64, cross_attn=cond, **options
        )
        assert torch.equal(found, conds["y"].cond)
        assert not torch.equal(found, pooled_embedding(loaded[0], base.empty_prompt, (96, 64)))

    def test_an_adapter_of_another_supir_or_unet_is_refused(self, plain: Any, loaded: Any) -> None:
        model, clip, vae = plain
        ada = random_adapter(loaded[0])
        other = with_supir(model, vae, image((SIZE, SIZE)), model_patch(seed=5))
        with pytest.raises(PFStorerError, match=r"was trained on restorer 'SUPIR' \(\w{8}\)"):
            host.apply_identity(load_supir(other, clip, vae)[0], ada)
        unet = sdxl(seed=7)[0]
        other = load_supir(with_supir(unet, vae, image((SIZE, SIZE))), clip, vae)[0]
        digest = base_of(loaded[0]).unet_digests[0]
        ada.info = dataclasses.replace(ada.info, unet_digest=digest)
        with pytest.raises(PFStorerError, match="another Stable Diffusion checkpoint"):
            check_identity_fit(other.model.diffusion_model, ada, base_of(other))

    def test_a_digest_does_not_depend_on_the_files_type(self) -> None:
        network = model_patch().model
        half = model_patch().model.half()
        assert network_digest(network) == network_digest(half)
        assert network_digest(network) != network_digest(model_patch(seed=4).model)

    def test_a_model_without_supir_or_with_two_is_refused(self, plain: Any, supir: Any) -> None:
        model, clip, vae = plain
        with pytest.raises(PFStorerError, match="The MODEL has no SUPIR"):
            load_supir(model, clip, vae)
        twice = with_supir(supir, vae, image((SIZE, SIZE)))
        with pytest.raises(PFStorerError, match="has SUPIR twice"):
            load_supir(twice, clip, vae)

    def test_condition_on_lq_is_refused(self, loaded: Any) -> None:
        with pytest.raises(PFStorerError, match="SUPIR has its LQ image from 'Apply SUPIR Patch'"):
            host.condition_on_lq(loaded[0], torch.zeros(1, 4, 8, 8))


class TestReferences:
    def test_they_are_seen_under_their_own_size(self, loaded: Any) -> None:
        ada = random_adapter(loaded[0])
        shown = [torch.randn(1, 4, 8, 8), torch.randn(2, 4, 8, 12)]
        applied = host.apply_identity(loaded[0], ada, references=shown)
        (identity,) = applied.get_wrappers("diffusion_model", "pfstorer")[0].identities
        assert [y.shape for y in identity.reference_pooled] == [(1, 1568)] * 2
        without = host.apply_identity(loaded[0], ada)
        assert relative_l2(sample(applied, loaded[1]), sample(without, loaded[1])) > 1e-4
