"""LQ latents and references on their way into a restorer's MODEL."""

from typing import Any

import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from golden_weights import Goldens, relative_l2
from tiny_models import LATENT, image, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import base_of
from pfstorer_core.host.images import target_size


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


def first_inputs(model: Any) -> tuple[Any, list[torch.Tensor]]:
    """Returns a clone that notes what the UNet sees at each step."""
    inputs: list[torch.Tensor] = []

    def wrapper(executor, x, *args, **kwargs):
        inputs.append(x)
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return model, inputs


def test_starting_from_the_lq_latent_is_the_references_start(loaded) -> None:
    """ComfyUI scales the first noise by 1.0 where the reference has 0.99767."""
    tensors = Goldens.find().tensors("sampling_start")
    lq_latent, noise = tensors["xT.lq_latent_scaled"], tensors["xT.noise"]
    model, inputs = first_inputs(loaded[0])
    raw = lq_latent / LATENT["scale_factor"]
    prompt = base_of(model).empty_prompt
    comfy.sample.sample(
        host.condition_on_lq(model, raw),
        noise,
        1,
        1.0,
        "ddpm",
        "normal",
        prompt,
        prompt,
        raw,
        disable_pbar=True,
        seed=0,
    )
    expected = tensors["xT.out"] + (1 - 0.9976672530174255) * noise
    assert relative_l2(inputs[0], expected) < 1e-5


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (1, 4, 1, 16, 16)])
def test_a_latent_of_another_vae(loaded, shape: tuple[int, ...]) -> None:
    with pytest.raises(PFStorerError, match=r"takes \(batch, 4, height, width\); use the VAE"):
        host.condition_on_lq(loaded[0], torch.zeros(shape))


@pytest.mark.parametrize(
    ("scale", "longest_side", "expected"),
    [(1.0, 0, (30, 40)), (2.5, 0, (75, 100)), (2.5, 128, (96, 128)), (0.01, 0, (1, 1))],
)
def test_target_size(scale: float, longest_side: int, expected: tuple[int, int]) -> None:
    assert target_size(image((30, 40)), scale, longest_side) == expected
