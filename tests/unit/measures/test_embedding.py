"""The embedding network."""

import torch

from pfstorer_core.measures.embedding import EmbeddingConfig, EmbeddingNetwork

SMALL = EmbeddingConfig(size=32, stem=8, widths=(8, 16), squeezed=4, features=16)


def test_rows_have_unit_length_and_do_not_depend_on_the_batch(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    network = EmbeddingNetwork(SMALL)
    network(torch.rand(16, 3, 32, 32, generator=generator))  # gives the norms statistics
    network.eval()
    images = torch.rand(3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        rows = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert rows.shape == (3, 16)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(rows, alone, atol=1e-5)
