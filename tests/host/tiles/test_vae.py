"""Pictures encoded and decoded tile by tile."""

from typing import Any

import comfy.model_management as mm
import pytest
import torch
from golden_weights import relative_l2
from tiny_models import image, latents, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.tiles.padding import pad
from pfstorer_core.host.tiles.vae import decode, encode

CELL = 4
SIZE = (648, 600)  # larger than a tile of 512 px


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))[2]


def count(layer: torch.nn.Module) -> tuple[list[tuple[int, ...]], Any]:
    """Returns a list that gets the size of what a layer takes, and the handle that ends it."""
    sizes: list[tuple[int, ...]] = []
    hook = layer.register_forward_hook(lambda _, args, out: sizes.append(tuple(args[0].shape[2:])))
    return sizes, hook


@pytest.fixture
def encoded(vae):
    sizes, hook = count(vae.first_stage_model.encoder.stem)
    yield sizes
    hook.remove()


@pytest.fixture
def decoded(vae):
    sizes, hook = count(vae.first_stage_model.decoder.stem)
    yield sizes
    hook.remove()


def test_a_small_picture_is_encoded_and_decoded_as_a_whole(vae) -> None:
    pixels = image((64, 48), batch=2)
    latent = encode(vae, pixels.movedim(-1, 1), (64, 48))
    assert torch.equal(latent, vae.encode(pixels))
    assert torch.equal(decode(vae, latent).movedim(1, -1), vae.decode(latent))


def test_tiled_encoding_is_close_to_the_whole(vae, encoded) -> None:
    pixels = image(SIZE)
    tiled = encode(vae, pixels.movedim(-1, 1), SIZE)
    assert encoded == [(128, 128)] * 4
    whole = vae.encode(pixels)
    assert tiled.shape == whole.shape == (1, 4, 162, 150)
    assert 0 < relative_l2(tiled, whole) < TOLERANCE


def test_tiled_decoding_is_close_to_the_whole(vae, decoded) -> None:
    samples = latents(1, (162, 150))
    tiled = decode(vae, samples)
    assert decoded == [(128, 128)] * 4
    whole = vae.decode(samples).movedim(-1, 1)
    assert tiled.shape == whole.shape == (1, 3, *SIZE)
    assert 0 < relative_l2(tiled, whole) < TOLERANCE


TOLERANCE = 0.02  # the normalisation looks at the whole of a tile


@pytest.mark.parametrize("size", [(61, 45), (3, 64), (1, 1)])
def test_what_is_missing_to_the_right_and_below_is_mirrored(vae, size: tuple[int, int]) -> None:
    pixels = image(size).movedim(-1, 1)
    padded = (64, 64)
    latent = encode(vae, pixels, padded)
    assert torch.equal(latent, vae.encode(pad(pixels, padded).movedim(1, -1)))


def test_mirroring_across_tiles(vae) -> None:
    size = (645, 590)
    pixels = image(size).movedim(-1, 1)
    mirrored = encode(vae, pad(pixels, SIZE), SIZE)
    assert torch.equal(encode(vae, pixels, SIZE), mirrored)


def test_tiles_that_nobody_needs_are_left_out(vae, encoded, decoded) -> None:
    pixels = image(SIZE).movedim(-1, 1)
    needed = torch.zeros(162, 150, dtype=torch.bool)
    needed[150, 5] = True  # in the lower left tile alone
    latent = encode(vae, pixels, SIZE, needed)
    assert len(encoded) == 1
    whole = encode(vae, pixels, SIZE)
    assert not latent[:, :, :34].any() and not latent[:, :, :, 128:].any()
    torch.testing.assert_close(latent[:, :, 128:, :22], whole[:, :, 128:, :22])

    picture = decode(vae, whole, needed)
    assert len(decoded) == 1
    assert picture.shape == (1, 3, *SIZE)
    expected = decode(vae, whole)[:, :, 512:, : 22 * CELL]
    torch.testing.assert_close(picture[:, :, 512:, : 22 * CELL], expected)
    assert not picture[:, :, :136].any() and not picture[:, :, :, 512:].any()

    lq = image((646, 599), seed=3).movedim(-1, 1)  # padded as it was encoded
    filled = decode(vae, whole, needed, lq=lq)
    assert torch.equal(filled[:, :, 136:, :512], picture[:, :, 136:, :512])
    assert torch.equal(filled[:, :, :136], pad(lq, SIZE)[:, :, :136])
    assert torch.equal(filled[:, :, :, 512:], pad(lq, SIZE)[:, :, :, 512:])


def test_nothing_needed(vae) -> None:
    with pytest.raises(PFStorerError, match="Nothing is to be restored"):
        decode(vae, latents(1, (16, 16)), torch.zeros(16, 16, dtype=torch.bool))


def test_it_can_be_interrupted_between_tiles(vae, decoded) -> None:
    stem = vae.first_stage_model.decoder.stem
    hook = stem.register_forward_hook(lambda *_: mm.interrupt_current_processing())
    with pytest.raises(mm.InterruptProcessingException):
        decode(vae, latents(1, (162, 150)))
    hook.remove()
    assert len(decoded) == 1
