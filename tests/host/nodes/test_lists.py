"""Lists and batches: each picture is restored with its own LQ image, mask and adapter."""

from pathlib import Path
from typing import Any

import comfy.sample
import pytest
import torch
from loaded_pack import Pack
from tiny_models import image, random_adapter, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import base_of
from pfstorer_core.host.images import encode_lq
from pfstorer_core.host.patch.lq import matching_items
from pfstorer_core.host.sites import find_identity_sites

SIZE = (64, 64)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MODEL, CLIP and VAE."""
    folder: Path = tmp_path_factory.mktemp("lists")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


def pack_adapter(pack: Pack, model: Any, name: str) -> Any:
    """An untrained adapter of the plugin as ComfyUI loaded it."""
    adapters = pack.module("pfstorer_core.identities.adapter")
    base = pack.module("pfstorer_core.host.base").base_of(model)
    info = adapters.AdapterInfo(
        name,
        base.info.name,
        base.info.fingerprint,
        model.model.model_config.unet_config["context_dim"],
        find_identity_sites(model.model.diffusion_model),
        pack.module("pfstorer_core.identities.config").PersonalizationConfig(),
    )
    return adapters.IdentityAdapter.initialise(info)


def pictures(count: int) -> torch.Tensor:
    """(count, 64, 64, 3), all different."""
    generator = torch.Generator().manual_seed(4)
    return torch.cat([image(SIZE) * torch.rand(3, generator=generator) for _ in range(count)])


def sampled(model: Any, latent: torch.Tensor) -> torch.Tensor:
    prompt = base_of(model).empty_prompt
    noise = torch.zeros_like(latent)
    return comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "normal", prompt, prompt, latent, seed=0, disable_pbar=True
    )


@pytest.mark.parametrize(
    "chosen", [[0, 1, 2], [1], [2, 0], [0, 0, 1, 1, 2, 2], [1, 2]], ids=lambda x: str(x)
)
def test_latents_find_their_lq_image_and_mask(loaded, chosen: list[int]) -> None:
    """Rebatch Latents, Latent From Batch and Repeat Latent Batch lie between."""
    model, _, vae = loaded
    given = pictures(3)
    latent = encode_lq(model, vae, given)
    masks = torch.zeros(3, *SIZE)
    masks[0, :32], masks[1, 32:], masks[2, :, :32] = 1, 1, 1
    conditioned = host.condition_on_lq(model, latent, given)
    conditioned = host.apply_identity(conditioned, random_adapter(model), 1.0, masks)
    whole = sampled(conditioned, latent)
    part = sampled(conditioned, latent[chosen])
    assert (whole[0] - whole[1]).abs().max() > 1e-2, "the pictures differ"
    assert torch.allclose(part, whole[chosen], atol=1e-4)


def test_what_belongs_together_goes_by_position_or_not_at_all() -> None:
    lq = torch.randn(3, 4, 8, 8)
    assert matching_items(torch.zeros(3, 4, 8, 8), lq) == (0, 1, 2)
    assert matching_items(torch.zeros(2, 4, 8, 8), lq[:1]) == (0, 0)
    assert matching_items(lq.flip(0), lq) == (2, 1, 0)
    assert matching_items(lq[[1, 1]], lq[[0, 1, 1]]) == (1, 1)
    with pytest.raises(PFStorerError, match=r"2 item\(s\).*3 LQ images"):
        matching_items(torch.zeros(2, 4, 8, 8), lq)


@pytest.mark.parametrize(("masks", "images"), [(2, 1), (2, 3)])
def test_masks_that_belong_to_no_picture_are_refused(loaded, masks: int, images: int) -> None:
    model, _, vae = loaded
    mask = torch.ones(masks, *SIZE)
    given = pictures(images)
    sentence = rf"'Ada' has {masks} masks for {images} image"
    personalized = host.apply_identity(model, random_adapter(model), 1.0, mask)
    with pytest.raises(PFStorerError, match=sentence):
        host.restore(personalized, vae, given, steps=1)
    latent = encode_lq(model, vae, given)
    with pytest.raises(PFStorerError, match=sentence):
        host.condition_on_lq(personalized, latent, given)
    with pytest.raises(PFStorerError, match=sentence):
        host.apply_identity(
            host.condition_on_lq(model, latent, given), random_adapter(model), 1.0, mask
        )


def test_lists_are_paired_as_comfyui_pairs_them(loaded, pack: Pack) -> None:
    node = pack.node("PFStorerApplyPersonalization")
    path = pack.module("pfstorer_core.host.load.folders").MINI_RESTORER_PATH
    model = pack.module("pfstorer_core.host").load_base_restorer(path)[0]
    people = [pack_adapter(pack, model, name) for name in ("Ann", "Bob", "Cid")]
    masks = [torch.full((1, *SIZE), value) for value in (0.5, 1.0)]
    given = {"model": [model], "adapter": people, "gamma": [0.5, 1.0], "mask": masks}
    (models,) = node.execute(**given, start=[0.0], end=[1.0]).args
    wrapper = pack.module("pfstorer_core.host.patch.model").restorer_wrapper
    applied = [wrapper(m).identities[0] for m in models]
    assert [x.adapter.info.name for x in applied] == ["Ann", "Bob", "Cid"]
    assert [x.strength for x in applied] == [0.5, 1.0, 1.0]
    assert [float(x.mask.max()) for x in applied] == [0.5, 1.0, 1.0]


def test_overshooting_masks_and_pictures_are_cut_off(loaded) -> None:
    """As bicubic scaling makes them."""
    model, _, vae = loaded
    mask = torch.ones(1, *SIZE)
    mask[:, :8], mask[:, 8:16] = -0.12, 1.22
    wide = pictures(1) * 1.4 - 0.2
    applied = [
        host.apply_identity(model, random_adapter(model), 1.0, x) for x in (mask, mask.clamp(0, 1))
    ]
    given = wide, wide.clamp(0, 1)
    results = [host.restore(m, vae, x, steps=1) for m, x in zip(applied, given, strict=True)]
    assert torch.equal(*results)
    assert torch.equal(*(encode_lq(model, vae, x) for x in given))


@pytest.mark.parametrize("size", [(3, 300), (8, 8), (1, 1), (300, 3)])
def test_a_picture_too_small_for_the_unet_is_refused(loaded, size: tuple[int, int]) -> None:
    model, _, vae = loaded
    if size == (8, 8):  # the tiny model has fewer levels than the bundled one
        size = (7, 7)
    with pytest.raises(PFStorerError, match=rf"{size[1]} x {size[0]} pixels.*'Tiled Restore'"):
        encode_lq(model, vae, torch.rand(1, *size, 3))


def test_what_is_no_sampling_is_refused(loaded) -> None:
    model, _, vae = loaded
    with pytest.raises(PFStorerError, match=r"from noise with denoise 0\.5"):
        host.restore(model, vae, pictures(1), steps=2, start="noise", denoise=0.5)
    with pytest.raises(PFStorerError, match="scheduler 'kl_optimal' gives no finite"):
        host.restore(model, vae, pictures(1), steps=1, scheduler="kl_optimal")
