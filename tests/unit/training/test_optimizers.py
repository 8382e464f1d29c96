"""Tests of Muon, which steps all weights of one shape at once."""

import copy

import pytest
import torch
from torch import nn

from pfstorer_core.training.optimizers import Muon, Optimizers, orthogonalised

SHAPES = [(8, 4, 3, 3), (8, 4, 3, 3), (6, 20), (20, 6)]


def parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def steps(optimizer, weights, shift=0):
    for k in range(3):
        generator = torch.Generator().manual_seed(k + shift)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_singular_values_come_near_one():
    for shape in ((2, 6, 30), (2, 30, 6)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        singular = torch.linalg.svdvals(orthogonalised(matrices).float())
        # the quintic of Muon drives them into about [0.7, 1.2], not to 1
        assert singular.min() > 0.5 and singular.max() < 1.4
        assert torch.linalg.svdvals(matrices).max() > 3


def assert_steps_alike(some, others):
    """Equal but for bfloat16's rounding (2^-8) in each of the iteration's five rounds."""
    for a, b, start in zip(some, others, parameters(), strict=True):
        assert (a - b).norm() < 5 * 2**-7 * (a - start).norm()


def test_each_weight_is_stepped_as_if_it_were_alone():
    together, alone = parameters(), parameters()
    steps(Muon(together, 1e-2, 0.1), together)
    optimizers = [Muon([weight], 1e-2, 0.1) for weight in alone]
    for k in range(3):
        generator = torch.Generator().manual_seed(k)
        for weight in alone:
            weight.grad = torch.randn(weight.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    assert_steps_alike(together, alone)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
def test_it_steps_as_pytorchs_own_and_takes_its_state():
    ours, theirs = parameters(), parameters()
    own = Muon(ours, 1e-2, 0.1)
    # PyTorch's takes matrices only
    matrices = [nn.Parameter(weight.data.flatten(1)) for weight in theirs]
    reference = torch.optim.Muon(matrices, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")

    def reference_steps(shift):
        for k in range(3):
            generator = torch.Generator().manual_seed(k + shift)
            for matrix, weight in zip(matrices, theirs, strict=True):
                matrix.grad = torch.randn(weight.shape, generator=generator).flatten(1)
            reference.step()

    reference_steps(0)
    steps(own, ours)
    assert_steps_alike(ours, theirs)
    own.load_state_dict(copy.deepcopy(reference.state_dict()))
    reference_steps(3)
    steps(own, ours, 3)
    assert_steps_alike(ours, theirs)


def test_kernels_of_any_memory_format_are_trained():
    layer = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    before = layer.weight.detach().clone()
    optimizers = Optimizers(layer, "muon", 1e-2, 0.0)
    layer(torch.randn(1, 4, 5, 5)).sum().backward()
    for optimizer in optimizers.all:
        optimizer.step()
    assert (layer.weight != before).all()
