import torch

from pfstorer_core.identities.automatic_gamma import gamma_for


def test_gamma_never_leaves_its_range() -> None:
    gammas = gamma_for(torch.linspace(0, 1, 50))
    assert torch.equal(gammas, gammas.sort().values)
    assert 0.5 <= gammas[0] < gammas[-1] <= 1.5
