"""Tests of what a step of identity training draws and minimises."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from pfstorer_core.degradation.presets import PRESETS as DEGRADATIONS
from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.identity import (
    PRESETS,
    IdentityTrainingConfig,
    build_photo_pool,
    identity_objective,
)
from pfstorer_core.training.loop import step_generator
from pfstorer_core.training.losses import diffusion_loss, diffusion_target, noise_schedule
from pfstorer_core.training.pool import LatentPool

CONFIG = IdentityTrainingConfig(batch=4, lq_noise=0.0)
ITEMS = 6


@dataclass
class Step:
    """One call of the network and what the objective made of its prediction."""

    noisy: Tensor
    timesteps: Tensor
    lq_latent: Tensor
    reference: Tensor | None
    prediction: Tensor
    loss: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Recorder(nn.Module):
    """A network that notes what it is asked and predicts the LQ latent, scaled by a weight."""

    def __init__(self, answer: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls: list[Step] = []
        self.answer = answer or (lambda noisy, timesteps, lq_latent, reference: lq_latent)

    def forward(self, *args: Tensor) -> Tensor:
        prediction = self.weight * self.answer(*args)
        self.calls.append(Step(*args, prediction))
        return prediction


def pool() -> LatentPool:
    """Clean latents whose first value is the item's number, with LQ latents of minus them."""
    clean = torch.randn(ITEMS, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    clean[:, 0, 0, 0] = torch.arange(ITEMS)
    return LatentPool(clean.half(), -clean.half())


def step(config: IdentityTrainingConfig = CONFIG, number: int = 0, kind: str = "epsilon") -> Step:
    network = Recorder()
    objective = identity_objective(pool(), noise_schedule(kind), config)
    loss, scalars = objective(network, step_generator(config.seed, number, 0))
    (call,) = network.calls
    return replace(call, loss=loss, scalars=scalars)


def items(latents: Tensor) -> list[int]:
    return latents[:, 0, 0, 0].round().int().tolist()


def test_the_regularizer_repeats_the_clean_latents_without_their_lq_latents() -> None:
    found = step()
    assert found.noisy.shape == (8, 4, 8, 8)
    seen, blind = found.lq_latent.chunk(2)
    clean = pool().clean.float()
    for latent in seen:
        assert any(torch.equal(latent, -x) for x in clean), "the restoring half sees its LQ latent"
    assert abs(blind.mean()) < 0.1 and abs(blind.std() - 1) < 0.1, "the other sees pure noise"
    # The blind half holds nothing of the pool: another pool leaves it as it is.
    other = LatentPool(pool().clean, torch.zeros_like(pool().lq))
    network = Recorder()
    identity_objective(other, noise_schedule("epsilon"), CONFIG)(network, step_generator(0, 0, 0))
    assert torch.equal(network.calls[0].lq_latent[4:], blind)
    assert not network.calls[0].lq_latent[:4].any()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noisy_latents_and_the_loss_are_the_schedules(kind: str) -> None:
    """Found from outside: the noise that explains the noisy latents explains the losses too."""
    schedule = noise_schedule(kind)
    found = step(kind=kind, config=replace(CONFIG, regularizer_weight=2.5))
    clean = -found.lq_latent[:4].repeat(2, 1, 1, 1)
    alpha = schedule.alphas_cumprod[found.timesteps].reshape(-1, 1, 1, 1)
    noise = (found.noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    late = found.timesteps > 300  # where the division is exact enough
    assert abs(noise[late].mean()) < 0.15 and abs(noise[late].std() - 1) < 0.15
    assert not torch.allclose(noise[:4], noise[4:], atol=0.5), "fresh noise in the blind half"
    target = diffusion_target(schedule, clean, noise, found.timesteps)
    losses = diffusion_loss(schedule, found.prediction, target, found.timesteps, 5.0)
    restore, generate = losses[:4].mean(), losses[4:].mean()
    torch.testing.assert_close(found.scalars["restore"], restore, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.scalars["generate"], generate, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.loss, restore + 2.5 * generate, rtol=1e-3, atol=1e-4)


def test_a_perfect_prediction_has_no_loss() -> None:
    schedule = noise_schedule("v_prediction")

    def perfect(noisy: Tensor, timesteps: Tensor, lq_latent: Tensor, _: object) -> Tensor:
        latent = -lq_latent[:4].repeat(2, 1, 1, 1)
        alpha = schedule.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * latent) / (1 - alpha).sqrt()
        return schedule.get_velocity(latent, noise, timesteps)

    objective = identity_objective(pool(), schedule, CONFIG)
    loss, _ = objective(Recorder(perfect), step_generator(0, 0, 0))
    assert loss < 1e-6
    assert objective(Recorder(), step_generator(0, 0, 0))[0] > 0.05


def test_without_the_regularizer_a_step_has_half_the_latents() -> None:
    found = step(replace(CONFIG, regularizer_weight=0.0))
    assert found.noisy.shape == found.lq_latent.shape == (4, 4, 8, 8)
    assert set(found.scalars) == {"restore"}
    assert torch.equal(found.loss, found.scalars["restore"])
    assert torch.equal(found.lq_latent, step().lq_latent[:4]), "it draws the same pictures"


def test_timesteps_cover_all_noise_levels_in_each_half() -> None:
    for number in range(20):
        for half in step(number=number).timesteps.chunk(2):
            assert (half // 250).tolist() == [0, 1, 2, 3]


def test_timesteps_stay_in_the_schedule() -> None:
    """Of a large batch's last place, 1023 + x over 1024, rounding in float32 now and then makes 1;
    the step is one where it does."""
    config = replace(CONFIG, batch=1024, regularizer_weight=0.0)
    single = LatentPool(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    network = Recorder()
    objective = identity_objective(single, noise_schedule("epsilon"), config)
    objective(network, step_generator(0, 11695, 0))
    assert network.calls[0].timesteps.max() == 999


def test_the_reference_is_drawn_anew_from_the_clean_latents() -> None:
    always = [step(replace(CONFIG, reference_probability=1.0), number) for number in range(30)]
    drawn = [items(found.reference)[0] for found in always if found.reference is not None]
    assert len(drawn) == 30 and set(drawn) == set(range(ITEMS))
    assert all(found.reference.shape == (1, 4, 8, 8) for found in always)
    assert all(
        torch.equal(f.reference[0], pool().clean[n].float())
        for f, n in zip(always, drawn, strict=True)
    )
    never = [step(replace(CONFIG, reference_probability=0.0), number) for number in range(30)]
    assert all(found.reference is None for found in never)
    for a, b in zip(always, never, strict=True):
        assert torch.equal(a.noisy, b.noisy), "whether one is shown changes nothing else"
    some = [step(CONFIG, number).reference is not None for number in range(100)]
    assert 30 < sum(some) < 70


def test_noise_on_the_lq_latent_has_its_bound() -> None:
    plain = step()
    noisy = step(replace(CONFIG, lq_noise=0.5))
    spread = (noisy.lq_latent - plain.lq_latent)[:4].std((1, 2, 3))
    assert (spread > 0.01).all() and (spread < 0.6).all()
    assert torch.equal(noisy.lq_latent[4:], plain.lq_latent[4:])


def test_a_step_is_a_function_of_its_generator() -> None:
    a, b, c = step(), step(), step(number=1)
    assert torch.equal(a.noisy, b.noisy) and torch.equal(a.loss, b.loss)
    assert not torch.equal(a.noisy, c.noisy)


class TestPool:
    @staticmethod
    def build(config: IdentityTrainingConfig, **settings):
        torch.manual_seed(0)
        # Two photos of one colour each: a view of the first is dark, one of the second bright.
        photos = [torch.full((3, 70, 50), 0.2), torch.full((3, 40, 90), 0.7)]
        return build_photo_pool(photos, 32, lambda x: x - 0.5, config, **settings)

    def test_each_photo_gives_its_number_of_views(self) -> None:
        config = IdentityTrainingConfig(views_per_photo=5)
        batches: list[tuple[int, int]] = []
        made = self.build(config, batch=4, on_batch=lambda *numbers: batches.append(numbers))
        assert made.clean.shape == made.lq.shape == (10, 3, 32, 32)
        assert made.clean.dtype == torch.float16
        bright = made.clean.float().mean((1, 2, 3)) + 0.5
        assert (bright[:5] < 0.4).all() and (bright[5:] > 0.5).all()
        assert batches == [(0, 10), (4, 10), (8, 10)]

    def test_a_short_training_is_not_given_more_views_than_it_draws(self) -> None:
        few = IdentityTrainingConfig(steps=2, batch=3)
        assert len(self.build(few)) == 2 * 6
        assert IdentityTrainingConfig().views == 64

    def test_views_and_degradations_are_a_function_of_the_seed(self) -> None:
        config = IdentityTrainingConfig(views_per_photo=2)
        a, b = self.build(config), self.build(config)
        other = self.build(replace(config, seed=1))
        assert torch.equal(a.clean, b.clean) and torch.equal(a.lq, b.lq)
        assert not torch.equal(a.lq, other.lq)

    def test_the_degradations_are_those_asked_for(self) -> None:
        config = IdentityTrainingConfig(views_per_photo=8)
        light, extreme = (
            self.build(replace(config, degradations=((name, 1.0),)))
            for name in ("light", "extreme")
        )
        assert torch.equal(light.clean, extreme.clean)
        error = [(made.lq - made.clean).float().abs().mean() for made in (light, extreme)]
        assert error[0] < error[1]


def test_no_view_is_flipped() -> None:
    """Sides are part of an identity: a photo that is dark on the left stays so in every view."""
    photo = torch.linspace(0.1, 0.9, 64).expand(3, 64, 64)
    config = IdentityTrainingConfig(views_per_photo=40)
    made = build_photo_pool([photo], 32, lambda x: x, config)
    left, right = made.clean.float().chunk(2, -1)
    assert (left.mean((1, 2, 3)) < right.mean((1, 2, 3))).all()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"steps": 0}, "steps is 0; give a number from 1"),
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 5.0}, "learning_rate is 5.0"),
        ({"regularizer_weight": -1.0}, "regularizer_weight is -1.0"),
        ({"reference_probability": 1.5}, "reference_probability is 1.5"),
        ({"views_per_photo": 0}, "views_per_photo is 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; choose one of auto, bf16"),
        ({"degradations": ()}, "degradations are none; choose from"),
        ({"degradations": (("bad", 1.0),)}, "degradations are bad; choose from"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, fault: str) -> None:
    with pytest.raises(PFStorerError, match=fault):
        IdentityTrainingConfig(**settings)


def test_presets_differ_in_length_alone_and_fit_the_loop() -> None:
    assert list(PRESETS) == ["quick", "standard", "thorough"]
    steps = [config.steps for config in PRESETS.values()]
    assert steps == sorted(set(steps))
    assert PRESETS["standard"] == IdentityTrainingConfig()
    for config in PRESETS.values():
        loop = config.loop("no")
        assert (loop.steps, loop.seed, loop.mixed_precision) == (config.steps, config.seed, "no")
        assert loop.warmup_steps < config.steps
        assert {name for name, _ in config.degradations} <= set(DEGRADATIONS)
    assert IdentityTrainingConfig(tokens=0, learned_gamma=False).blocks().tokens == 0
    assert not IdentityTrainingConfig(learned_gamma=False).blocks().learned_gamma
