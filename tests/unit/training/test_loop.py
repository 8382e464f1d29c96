"""Tests of the training loop: it learns, it resumes exactly, and it says what is wrong."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training import run as run_module
from pfstorer_core.training.base import BaseTrainingConfig, restoration_objective
from pfstorer_core.training.loop import LoopConfig, fit, step_generator
from pfstorer_core.training.losses import noise_schedule
from pfstorer_core.training.optimizers import Optimizers
from pfstorer_core.training.pool import LatentPool
from pfstorer_core.training.run import _check_gradients
from pfstorer_core.training.state import locked, save_state

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
    assert shapes == sorted([(16, 8, 3, 3), (4, 16, 3, 3), (16, 1)])
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


class Stopped(BaseException):
    """What ends a run from outside, as ComfyUI's interruption does: no `Exception`."""


class Losses:
    """Something of a training's own that its state keeps."""

    def __init__(self):
        self.values = []

    def state_dict(self):
        return {"values": torch.tensor(self.values, dtype=torch.float64)}

    def load_state_dict(self, state):
        self.values = state["values"].tolist()


@pytest.mark.parametrize("place", ["on_step", "sample"])
@pytest.mark.parametrize("at", [1, 7, 12])
def test_a_stop_keeps_state_and_averaged_weights(tmp_path, place, at):
    """Between two saved states, at the first step, and at the last."""
    config = replace(CONFIG, sample_every=1)
    _, objective = setting()

    def run(folder, stop_at=None, seed=0):
        losses, sheets = Losses(), []
        model, _ = setting(seed)  # what it starts from must not matter

        def on_step(step, scalars):
            losses.values.append(scalars["loss"])
            if place == "on_step" and step == stop_at:
                raise Stopped

        def sample(current):
            if place == "sample" and len(losses.values) == stop_at:
                raise Stopped
            sheets.append(weights(current))
            return torch.zeros(3, 8, 8)

        settings = {"sample": sample, "on_step": on_step, "kept": {"losses": losses}}
        try:
            assert fit(model, objective, config, folder, log_to_files=False, **settings)
            stopped = False
        except Stopped:
            stopped = True
        return model, losses.values, sheets, stopped

    whole, all_losses, sheets, _ = run(tmp_path / "whole")
    assert len(all_losses) == 12
    first, some_losses, _, stopped = run(tmp_path / "parts", at)
    assert stopped and some_losses == all_losses[:at]
    assert torch.equal(weights(first), sheets[at - 1]), "it ends with the averaged weights"
    assert torch.load(tmp_path / "parts" / "state", weights_only=True)["step"] == at
    second, rest, shown, stopped = run(tmp_path / "parts", seed=5)
    assert not stopped
    assert torch.equal(weights(whole), weights(second))
    assert rest == all_losses, "what was kept goes on too"
    assert torch.equal(shown[-1], weights(second)), "the last sheet is drawn, however it ended"


def test_no_files_but_the_state(tmp_path):
    model, objective = setting()
    config = replace(CONFIG, sample_every=6)
    sheet = torch.zeros(3, 8, 8)
    fit(model, objective, config, tmp_path, sample=lambda _: sheet, log_to_files=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state"]


def test_each_step_is_told_with_its_scalars(tmp_path):
    model, objective = setting()
    told = []
    fit(model, objective, CONFIG, tmp_path, on_step=lambda *report: told.append(report))
    assert [step for step, _ in told] == list(range(1, 13))
    assert all(set(scalars) == {"loss", "restore", "grad_norm"} for _, scalars in told)
    assert len({scalars["loss"] for _, scalars in told}) == 12


def test_trainings_of_other_precisions_follow_each_other(tmp_path):
    """accelerate's settings are the process's: a training must not leave its own behind."""

    def run(precision, folder, fail=False):
        model, objective = setting()
        kinds = []
        model.time.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))

        def watched(network, generator):
            found = objective(network, generator)
            if fail:
                raise Stopped
            return found

        config = replace(CONFIG, steps=2, mixed_precision=precision)
        try:
            fit(model, watched, config, tmp_path / folder, device=torch.device("cpu"))
        except Stopped:
            pass
        return set(kinds)

    assert run("no", "a") == {torch.float32}
    assert run("bf16", "b") == {torch.bfloat16}
    assert run("no", "c", fail=True) == {torch.float32}
    assert run("bf16", "d", fail=True) == {torch.bfloat16}
    assert run("no", "e") == {torch.float32}


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

    with pytest.raises(PFStorerError, match="loss was nan at step 1"):
        fit(model, broken, CONFIG, tmp_path / "nan")


class TestFaults:
    """What goes wrong in a step leaves the weights, and the state, of the step before."""

    def failing(self, objective, at, fail):
        calls = 0

        def wrapped(model, generator):
            nonlocal calls
            calls += 1
            loss, scalars = objective(model, generator)
            return fail(loss) if calls == at else (loss, scalars)

        return wrapped

    @pytest.mark.parametrize(
        ("fail", "error", "match"),
        [
            (lambda loss: (loss * float("nan"), {}), PFStorerError, "loss was nan at step 7: low"),
            (
                lambda loss: (BadGradient.apply(loss), {}),
                PFStorerError,
                "norm of the gradients was nan at step 7: lower",
            ),
            (lambda loss: out_of_memory(), torch.OutOfMemoryError, "Tried to allocate"),
        ],
        ids=["loss", "gradients", "memory"],
    )
    def test_a_step_that_fails_is_not_taken(self, tmp_path, fail, error, match):
        model, objective = setting()
        averages = []
        with pytest.raises(error, match=match):
            fit(
                model,
                self.failing(objective, 7, fail),
                replace(CONFIG, sample_every=1),
                tmp_path / "parts",
                sample=lambda current: averages.append(weights(current)) or torch.zeros(3, 8, 8),
                log_to_files=False,
            )
        assert len(averages) == 6 and torch.equal(weights(model), averages[-1])
        assert all(p.grad is None for p in model.parameters())
        assert torch.load(tmp_path / "parts" / "state", weights_only=True)["step"] == 6
        whole, _ = setting()
        fit(whole, objective, CONFIG, tmp_path / "whole")
        again, _ = setting(seed=5)
        fit(again, objective, CONFIG, tmp_path / "parts")
        assert torch.equal(weights(whole), weights(again))

    def test_a_state_that_cannot_be_saved_does_not_end_a_run(self, tmp_path, caplog):
        folder, told = tmp_path / "run", []

        def on_step(step, scalars):
            if step == 6:
                shutil.rmtree(folder)
                folder.write_text("in the way")

        settings = {"on_step": on_step, "log_to_files": False, "on_warning": told.append}
        model, objective = setting()
        assert fit(model, objective, CONFIG, folder, **settings)
        whole, _ = setting()
        fit(whole, objective, CONFIG, tmp_path / "whole")
        assert torch.equal(weights(whole), weights(model))
        assert len(told) == 1 and "could not be written" in told[0] and "goes on" in told[0]
        assert caplog.text.count("could not be written") == 2  # at steps 8 and 12
        assert caplog.text.count("goes on") == 1  # at step 8

    def test_a_scaler_has_so_many_tries_and_no_more(self):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler = torch.amp.GradScaler("cpu")
        nan = torch.tensor(float("nan"))
        with pytest.raises(PFStorerError, match="norm of the gradients was nan at step 17: lower"):
            for step in range(100):
                scaler.scale(weight.sum() * nan).backward()
                _check_gradients(nan, scaler, step)
                scaler.step(optimizer)
                scaler.update()
        assert weight.item() == 1 and scaler.get_scale() == 1
        _check_gradients(torch.ones(()), scaler, 0)

    def test_a_full_disk_leaves_the_old_state(self, tmp_path):
        resource = pytest.importorskip("resource")
        model, _ = setting()
        save_state(tmp_path / "state", {"model": model}, 1, {})
        before = (tmp_path / "state").read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(PFStorerError, match=r"state' could not be written .*too large"):
                save_state(tmp_path / "state", {"model": model}, 2, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [file.name for file in tmp_path.iterdir()] == ["state"]
        assert (tmp_path / "state").read_bytes() == before


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_two_processes_do_not_share_a_run(tmp_path):
    model, objective = setting()
    with locked(tmp_path):
        with pytest.raises(PFStorerError, match="The same training runs in another process now"):
            fit(model, objective, CONFIG, tmp_path, log_to_files=False)
    assert fit(model, objective, CONFIG, tmp_path, log_to_files=False), "the lock is gone with it"


@pytest.mark.parametrize("stop_at", [None, 5, 8])
def test_steps_that_are_looked_at_together_are_told_one_by_one(tmp_path, monkeypatch, stop_at):
    """As on a GPU; what a report raises comes after those of the same look."""
    monkeypatch.setattr(run_module.Run, "_interval", 4)
    model, objective = setting()
    told = []

    def on_step(step, scalars):
        told.append((step, scalars["loss"]))
        if step == stop_at:
            raise Stopped

    config = replace(CONFIG, steps=10, save_every=0)
    if stop_at is None:
        assert fit(model, objective, config, tmp_path / "a", on_step=on_step)
    else:
        with pytest.raises(Stopped):
            fit(model, objective, config, tmp_path / "a", on_step=on_step)
        assert [step for step, _ in told] == list(range(1, 9))
        assert torch.load(tmp_path / "a" / "state", weights_only=True)["step"] == 8
        again, _ = setting(seed=5)
        assert fit(again, objective, config, tmp_path / "a", on_step=on_step)
    assert [step for step, _ in told] == list(range(1, 11))
    whole, _ = setting()
    single = []
    monkeypatch.undo()
    fit(
        whole, objective, config, tmp_path / "b", on_step=lambda s, x: single.append((s, x["loss"]))
    )
    assert told == single
