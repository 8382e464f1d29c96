import torch

from pfstorer_core.training.base import BaseTrainingConfig, restoration_objective
from pfstorer_core.training.loop import step_generator
from pfstorer_core.training.losses import noise_schedule
from pfstorer_core.training.pool import LatentPool


def test_timesteps_stay_in_the_schedule():
    """Rounding in float32 can put a batch's last place on 1; the step is one where it does."""
    single = LatentPool(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    config = BaseTrainingConfig(batch=1024, noise_lq_probability=0.0)
    seen = []

    def model(noisy, timesteps, lq_latent):
        seen.append(timesteps)
        return noisy

    model.parameters = lambda: iter([torch.zeros(1)])
    objective = restoration_objective(single, noise_schedule("epsilon"), config)
    objective(model, step_generator(0, 1353, 0))
    assert seen[0].max() == 999


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
