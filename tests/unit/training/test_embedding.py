"""Training of the mini embedding; what it tells apart is tested with `similarity`."""

import torch

from pfstorer_core.training.autoencoder import TRAIN_IDENTITIES, UNSEEN
from pfstorer_core.training.embedding import (
    FIRST_IDENTITY,
    embedding_objective,
    portrait_album,
    vary_colours,
)


def test_an_album_holds_persons_of_no_other_training(generator: torch.Generator) -> None:
    assert TRAIN_IDENTITIES <= FIRST_IDENTITY < UNSEEN
    album = portrait_album(2, 4, generator, size=32)
    assert album.shape == (2, 4, 3, 32, 32)
    assert album.dtype == torch.uint8
    again = portrait_album(2, 4, torch.Generator().manual_seed(0), size=32)
    assert torch.equal(album, again)
    assert len({bytes(picture.numpy().tobytes()) for picture in album.flatten(0, 1)}) == 8


def test_the_loss_asks_for_the_own_person(generator: torch.Generator) -> None:
    """A model that knows persons by their colour has the least loss, one that does not the most."""
    colours = torch.rand(6, 1, 3, 1, 1, generator=generator) * 200 + 25
    album = colours.expand(6, 3, 3, 8, 8).byte()

    class Knows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean((2, 3)) - 0.5
            return torch.nn.functional.normalize(mean, dim=1)

    class Guesses(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 3) / 3**0.5

    objective = embedding_objective(album, 6, 10)
    known, scalars = objective(Knows(), torch.Generator().manual_seed(1))
    guessed, _ = objective(Guesses(), torch.Generator().manual_seed(1))
    assert known < 0.8 * guessed
    assert scalars["rank_1"] >= 0.5


def test_colours_vary_within_limits(generator: torch.Generator) -> None:
    images = torch.full((50, 3, 4, 4), 0.5)
    varied = vary_colours(images, generator)
    assert 0 < (varied - images).abs().max() < 0.15
    assert varied.flatten(1).std(0).min() > 0.005, "each picture changes in its own way"
