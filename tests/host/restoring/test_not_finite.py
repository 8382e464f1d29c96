"""Values that are not finite are found where they arise, and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import image, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.images import encode_lq, encode_references


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """MODEL, CLIP and VAE of this test alone."""
    return host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))


def spoil(module: torch.nn.Module, name: str) -> None:
    with torch.inference_mode():
        dict(module.named_parameters())[name].fill_(float("nan"))


def restore(loaded: Any, pixels: torch.Tensor, **settings: Any) -> torch.Tensor:
    return host.restore(loaded[0], loaded[2], pixels, **{"steps": 4, **settings})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_of_the_image(loaded, value: float) -> None:
    pixels = image((64, 64))
    pixels[0, 10, 20, 1] = value
    runs: list[Callable[[], Any]] = [
        lambda: restore(loaded, pixels),
        lambda: encode_lq(loaded[0], loaded[2], pixels),
        lambda: encode_references(loaded[0], loaded[2], [pixels]),
    ]
    for run in runs:
        with pytest.raises(PFStorerError, match="The image has values that are not finite"):
            run()


def test_of_a_latent_that_is_given(loaded) -> None:
    latent = encode_lq(loaded[0], loaded[2], image((64, 64)))
    latent[0, 0, 0, 0] = float("nan")
    with pytest.raises(PFStorerError, match=r"The LQ latent has values.*--fp32-vae"):
        host.condition_on_lq(loaded[0], latent)


def test_of_the_encoder(loaded) -> None:
    names = [name for name, _ in loaded[2].first_stage_model.named_parameters()]
    spoil(loaded[2].first_stage_model, next(name for name in names if "encoder" in name))
    with pytest.raises(PFStorerError, match="The LQ latent that the VAE made has values"):
        restore(loaded, image((64, 64)))


def test_of_the_decoder(loaded) -> None:
    names = [name for name, _ in loaded[2].first_stage_model.named_parameters()]
    spoil(loaded[2].first_stage_model, next(name for name in names if "decoder" in name))
    with pytest.raises(PFStorerError, match="The picture that the VAE decoded has values"):
        restore(loaded, image((64, 64)))


@pytest.mark.parametrize("tile_size", [0, 32])
def test_of_the_unet_at_its_first_step(loaded, tile_size: int) -> None:
    spoil(loaded[0].model.diffusion_model, "out.2.weight")
    with pytest.raises(PFStorerError, match="The latent after step 1 of 4 has values"):
        restore(loaded, image((64, 64)), tile_size=tile_size)


def test_of_a_step_in_the_middle(loaded) -> None:
    def spoil_later(args: dict[str, Any]) -> torch.Tensor:
        denoised = args["denoised"]
        return denoised * float("nan") if float(args["sigma"].max()) < 1 else denoised

    model = loaded[0].clone()
    model.set_model_sampler_post_cfg_function(spoil_later)
    with pytest.raises(PFStorerError, match=r"The latent after step [234] of 4 has values"):
        restore((model, *loaded[1:]), image((64, 64)))
