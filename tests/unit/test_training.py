"""Tests of the training loop: it learns, it resumes exactly, and it says what is wrong."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.base import BaseTrainingConfig, restoration_objective
from pfstorer_core.training.loop import LoopConfig, fit, step_generator
from pfstorer_core.training.losses import noise_schedule
from pfstorer_core.training.optimizers import Optimizers
from pfstorer_core.training.pool import LatentPool

CONFIG = LoopConfig(
    steps=12, warmup_steps=2, log_every=3, save_every=4, sample_every=0, ema_decay=0.9
)


class Denoiser(nn.Module):
    """A small network of the restorer's signature."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 3, padding=1)
        )
        self.time = nn.Linear(1, 16)

    def forward(self, noisy: Tensor, timesteps: Tensor, lq_latent: Tensor) -> Tensor:
        h = (
            self.body[0](torch.cat([noisy, lq_latent], 1))
            + self.time(timesteps[:, None] / 1000)[:, :, None, None]
        )
        return self.body[2](self.body[1](h))


def setting(seed: int = 0):
    torch.manual_seed(seed)
    clean = torch.randn(32, 4, 8, 8)
    pool = LatentPool(clean, clean + 0.3 * torch.randn_like(clean))
    return Denoiser(), restoration_objective(
        pool, noise_schedule("v_prediction"), BaseTrainingConfig(batch=4)
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_equals_uninterrupted(tmp_path, optimizer):
    """Law 4: bit for bit, also when the interruption lies between two saved states."""
    config = replace(CONFIG, optimizer=optimizer)
    whole, objective = setting()
    assert fit(whole, objective, config, tmp_path / "whole")

    calls = 0

    class Interrupted(Exception):
        pass

    def interrupted(model, generator):
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Interrupted
        return objective(model, generator)

    first, _ = setting()
    with pytest.raises(Interrupted):
        fit(first, interrupted, config, tmp_path / "parts")
    second, _ = setting(seed=5)  # what it starts from must not matter
    assert fit(second, objective, config, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(second))


def test_time_limit_saves_and_goes_on(tmp_path):
    model, objective = setting()
    assert not fit(model, objective, CONFIG, tmp_path, max_seconds=0)
    state = torch.load(tmp_path / "state", weights_only=True)
    assert state["step"] == 1
    whole, _ = setting()
    fit(whole, objective, CONFIG, tmp_path / "whole")
    again, _ = setting()
    assert fit(again, objective, CONFIG, tmp_path)
    assert torch.equal(weights(whole), weights(again))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls(tmp_path, optimizer):
    model, objective = setting()
    generator = step_generator(1, 0, 0)
    with torch.no_grad():
        before = objective(model, generator)[0]
    config = replace(
        CONFIG, steps=150, optimizer=optimizer, learning_rate=5e-3, save_every=0, log_every=50
    )
    fit(model, objective, config, tmp_path)
    with torch.no_grad():
        after = objective(model, step_generator(1, 0, 0))[0]
    assert after < 0.7 * before


def test_frozen_parameters_stay(tmp_path):
    model, objective = setting()
    model.time.requires_grad_(False)
    before = model.time.weight.clone()
    fit(model, objective, CONFIG, tmp_path)
    assert torch.equal(model.time.weight, before)
    state = torch.load(tmp_path / "state", weights_only=True)["parts"]["model"]
    assert set(state) == {"body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"}


def test_muon_gets_the_layers_weights_alone():
    model = Denoiser()
    adamw, muon = Optimizers(model, "muon", 1e-3, 0.0).all
    shapes = sorted(tuple(p.shape) for p in muon.param_groups[0]["params"])
    assert shapes == sorted([(16, 72), (4, 144), (16, 1)])
    assert all(p.ndim == 1 for p in adamw.param_groups[0]["params"])


def test_samples_show_the_averaged_weights(tmp_path):
    model, objective = setting()
    seen = []

    def sample(current: nn.Module) -> Tensor:
        seen.append(weights(current))
        return torch.zeros(3, 8, 8)

    fit(model, objective, replace(CONFIG, sample_every=6), tmp_path, sample=sample)
    assert len(seen) == 2
    assert torch.equal(seen[-1], weights(model))
    assert (tmp_path / "samples" / "000012.png").exists()
    assert any((tmp_path / "log").iterdir())


def test_pure_noise_share(tmp_path):
    """With probability one no LQ information is left: the LQ latent does not matter."""
    torch.manual_seed(0)
    clean = torch.randn(8, 4, 8, 8)
    seen = []

    def model(noisy, timesteps, lq_latent):
        seen.append(lq_latent)
        return noisy

    model.parameters = lambda: iter([torch.zeros(1)])
    for lq in (clean, -clean):
        for share in (1.0, 0.0):
            config = BaseTrainingConfig(batch=8, noise_lq_probability=share, lq_noise=0.0)
            objective = restoration_objective(
                LatentPool(clean, lq), noise_schedule("epsilon"), config
            )
            objective(model, step_generator(0, 0, 0))
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], -seen[3])


def test_errors(tmp_path):
    model, objective = setting()
    fit(model, objective, CONFIG, tmp_path)
    with pytest.raises(PFStorerError, match="seed 0, not 3"):
        fit(model, objective, replace(CONFIG, seed=3), tmp_path)
    with pytest.raises(PFStorerError, match="does not fit this model"):
        fit(nn.Linear(2, 2), objective, CONFIG, tmp_path)
    (tmp_path / "state").write_bytes(b"broken")
    with pytest.raises(PFStorerError, match="cannot be read"):
        fit(model, objective, CONFIG, tmp_path)
    with pytest.raises(PFStorerError, match="at least one step"):
        LoopConfig(steps=0)
    with pytest.raises(PFStorerError, match="expected one of adamw, muon"):
        Optimizers(model, "sgd", 1e-3, 0.0)

    def broken(model, generator):
        loss, _ = objective(model, generator)
        return loss * float("nan"), {}

    with pytest.raises(PFStorerError, match="loss became NaN"):
        fit(model, broken, CONFIG, tmp_path / "nan")
