"""Tiled Restore with core SUPIR: its picture in place of the one that the MODEL came with."""

import dataclasses
from typing import Any

import comfy.sample
import pytest
import torch
from golden_weights import relative_l2
from tiny_models import image, random_adapter
from tiny_supir import model_patch, sdxl, with_supir
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.load.supir import load_supir
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.patch.supir import (
    SupirRestorer,
    centre_function,
    recentred,
    supir_vae,
)
from pfstorer_core.host.restoring.person_check import check_persons
from pfstorer_core.identities.likeness import LikenessScale

PICTURE = (64, 96)
SETTINGS: dict[str, Any] = {"steps": 2, "cfg": 2.0, "seed": 1, "color_fix": "none"}


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any, Any]:
    return sdxl()


@pytest.fixture(scope="module")
def patch() -> Any:
    return model_patch()


@pytest.fixture(scope="module")
def loaded(plain: Any, patch: Any) -> tuple[Any, Any, Any]:
    """SUPIR with another picture, of another size."""
    model, clip, vae = plain
    return load_supir(with_supir(model, vae, image((128, 64), seed=9), patch, 4.0), clip, vae)


def core_picture(plain: Any, patch: Any, restore_cfg: float) -> Tensor:
    """What core's own nodes make of the picture."""
    model, clip, vae = plain
    given = with_supir(model, vae, image(PICTURE), patch, restore_cfg)
    latent = torch.zeros(1, 4, PICTURE[0] // 8, PICTURE[1] // 8)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    noise = comfy.sample.prepare_noise(latent, 1, [0])
    sampling = 2, 2.0, "euler", "normal", prompt, prompt, latent
    return vae.decode(comfy.sample.sample(given, noise, *sampling, disable_pbar=True, seed=1))


def test_in_one_tile_it_is_what_core_makes_of_the_picture(
    plain: Any, patch: Any, loaded: Any
) -> None:
    found = host.restore(loaded[0], loaded[2], image(PICTURE), start="noise", **SETTINGS)
    expected = core_picture(plain, patch, restore_cfg=4.0)
    assert relative_l2(found, expected) < 1e-3
    assert relative_l2(core_picture(plain, patch, restore_cfg=0.0), expected) > 5e-3


def test_each_tile_has_its_part_of_the_picture(loaded: Any) -> None:
    model, _, vae = loaded
    restorer = restorer_wrapper(model).restorer
    assert isinstance(restorer, SupirRestorer)
    latent = supir_vae(restorer, vae).encode(image(PICTURE))
    whole = model.get_model_object("latent_format").process_in(latent)[0]  # (4, 8, 12)
    parts = {x: whole[:, :, x : x + 8] for x in range(5)}
    seen: list[Tensor] = []
    handle = restorer.network.control_model.register_forward_pre_hook(
        lambda _, args: seen.extend(args[0])
    )
    try:
        out = host.restore(model, vae, image(PICTURE), tile_size=64, tile_batch=2, **SETTINGS)
    finally:
        handle.remove()
    assert out.shape == (1, *PICTURE, 3) and out.isfinite().all()
    near = [{x for x, part in parts.items() if relative_l2(hint, part) < 1e-4} for hint in seen]
    assert all(len(found) == 1 for found in near)
    assert set().union(*near) == {0, 4}


def test_one_large_tile_is_no_tile(loaded: Any) -> None:
    model, _, vae = loaded
    plain = host.restore(model, vae, image(PICTURE), **SETTINGS)
    tiled = host.restore(model, vae, image(PICTURE), tile_size=512, **SETTINGS)
    assert torch.equal(tiled, plain)


def test_several_pictures_and_an_adapter(loaded: Any) -> None:
    model, _, vae = loaded
    pictures = torch.cat([image(PICTURE, seed=k) for k in range(2)])
    settings = {**SETTINGS, "cfg": 1.0}
    base = host.restore(model, vae, pictures, **settings)
    ada = host.apply_identity(model, random_adapter(model), 0.0)
    assert torch.equal(host.restore(ada, vae, pictures, **settings), base)
    ada = host.apply_identity(model, random_adapter(model), "auto")
    assert relative_l2(host.restore(ada, vae, pictures, **settings), base) > 1e-4


def test_the_person_check_runs(loaded: Any) -> None:
    model, _, vae = loaded
    adapter = random_adapter(model)
    adapter.info = dataclasses.replace(adapter.info, likeness=LikenessScale(0.5, 0.1))
    applied = host.apply_identity(model, adapter)
    (check,) = check_persons(applied, vae, image((64, 64)).movedim(-1, 1))
    assert check.scores.isfinite().all()


def test_a_way_of_holding_on_that_is_not_known_is_refused(loaded: Any) -> None:
    assert centre_function(loaded[0]) is not None
    with pytest.raises(PFStorerError, match="set restore_cfg to 0"):
        recentred(lambda args: args["denoised"], torch.zeros(1, 4, 8, 8))
