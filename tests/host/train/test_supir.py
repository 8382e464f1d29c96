"""Training of identities on core SUPIR."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_weights import relative_l2
from tiny_models import image
from tiny_supir import sdxl, with_supir
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import TrainingProgress
from pfstorer_core.host.load.supir import load_supir
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.patch.supir import SupirRestorer, TrainableSupir
from pfstorer_core.host.train.network import (
    PersonalizedNetwork,
    cast_ahead,
    personalized_network,
)
from pfstorer_core.host.train.setup import Setup, set_up
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.training.identity import IdentityTrainingConfig

SIZE = 64
SETTINGS: dict[str, Any] = {
    "batch": 2,
    "views_per_photo": 4,
    "size": SIZE,
    "mixed_precision": "no",
    "preview_every": 50,
}


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, Any]:
    model, clip, vae = sdxl()
    return load_supir(with_supir(model, vae, image((SIZE, SIZE))), clip, vae)


@pytest.fixture(scope="module")
def setup(loaded: Any) -> Setup:
    return set_up(loaded[0], loaded[2], IdentityTrainingConfig(steps=2, **SETTINGS), print)


def built(setup: Setup) -> PersonalizedNetwork:
    with torch.inference_mode(False):
        return personalized_network(setup, "x", 1)


def noisy_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noisy, lq = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    return noisy, torch.tensor([20.0, 800.0]), lq


def test_it_computes_what_core_supir_does(loaded: Any, setup: Setup) -> None:
    """The hooks that core's own node hung on the MODEL, in a bare UNet."""
    noisy, timesteps, lq = noisy_batch()
    network = built(setup)
    restorer = restorer_wrapper(loaded[0]).restorer
    assert isinstance(network.restorer, TrainableSupir) and network.pooled is not None
    context, y = network.prompt.expand(2, -1, -1), network.pooled.expand(2, -1)
    patches = loaded[0].model_options["transformer_options"]["patches"]
    options = restorer.hooked({"patches": patches}, lq, False)
    with torch.no_grad():
        expected = network.unet(noisy, timesteps, context, y, transformer_options=options)
        found = network(noisy, timesteps, lq)
        plain = network.unet(noisy, timesteps, context, y)
    assert relative_l2(found, expected) < 1e-5
    assert relative_l2(plain, expected) > 0.05


def test_checkpointing_gives_the_same_gradients(setup: Setup) -> None:
    """Through SUPIR's adapters to blocks before them, and none into SUPIR itself."""
    noisy, timesteps, lq = noisy_batch()
    network = built(setup)
    gradients = []
    for checkpoint in (False, True):
        network.checkpoint = checkpoint
        network.zero_grad()
        network(noisy, timesteps, lq, noisy[:1]).square().mean().backward()
        grads = [p.grad for p in network.adapter.parameters()]
        gradients.append([grad.clone() for grad in grads if grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 50
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-7)
    earliest = network.adapter.block("input_blocks.1.0")
    assert any(p.grad is not None and p.grad.any() for p in earliest.parameters())
    assert all(p.grad is None for p in network.restorer.parameters())


@pytest.mark.parametrize("frozen", [torch.float16, torch.float32])
def test_under_autocast_supir_has_one_type(frozen: torch.dtype, setup: Setup) -> None:
    """As on a GPU, where SUPIR's frozen weights come in half precision."""
    noisy, timesteps, lq = noisy_batch()
    network = built(setup)
    expected = network(noisy, timesteps, lq).detach()
    network.restorer.to(frozen)
    cast_ahead(network.unet, "bf16")
    cast_ahead(network.restorer, "bf16", whole=True)
    assert {p.dtype for p in network.restorer.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        out = network(noisy, timesteps, lq).float()
    assert relative_l2(out, expected) < 0.1
    out.square().mean().backward()
    grads = [p.grad for p in network.adapter.block("input_blocks.1.0").parameters()]
    assert all(grad is None or bool(grad.isfinite().all()) for grad in grads)


def test_lq_views_go_through_supirs_own_encoder(loaded: Any, setup: Setup) -> None:
    picture = image((SIZE, SIZE)).movedim(-1, 1)
    clean, lq, again = setup.encode(picture), setup.encode_lq(picture), setup.encode(picture)
    assert torch.equal(clean, again), "the VAE stays as it is"
    assert relative_l2(lq, clean) > 0.05
    restorer = restorer_wrapper(loaded[0]).restorer
    assert isinstance(restorer, SupirRestorer)
    assert relative_l2(lq, restorer.hooks.hint_latent) < 1e-5, "as core's node encodes it"


@pytest.mark.slow
def test_an_adapter_learns_and_serves(loaded: Any, tmp_path: Path) -> None:
    model, clip, vae = loaded
    losses: list[float] = []

    def note(progress: TrainingProgress) -> None:
        if progress.loss is not None:
            losses.append(progress.loss)

    photos = [portrait_set(1_000_001, 2, seed=0, size=96).movedim(1, -1)]
    config = IdentityTrainingConfig(steps=50, **SETTINGS)
    adapter = host.train_identity(model, vae, photos, config, name="Ada", on_progress=note)
    assert len(losses) >= 50
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])
    adapter.save(tmp_path / "ada.safetensors")
    again = IdentityAdapter.load(tmp_path / "ada.safetensors")
    picture = image((SIZE, SIZE), seed=3)
    settings: dict[str, Any] = {"steps": 2, "cfg": 1.0}
    with_ada = host.restore(host.apply_identity(model, again), vae, picture, **settings)
    assert relative_l2(with_ada, host.restore(model, vae, picture, **settings)) > 1e-4
    other = with_supir(sdxl(seed=11)[0], vae, image((SIZE, SIZE)))
    with pytest.raises(PFStorerError, match="another Stable Diffusion checkpoint"):
        host.apply_identity(load_supir(other, clip, vae)[0], again)
