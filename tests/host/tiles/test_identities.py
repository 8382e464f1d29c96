"""Several people across tiles."""

from typing import Any

import pytest
import torch
from golden_weights import relative_l2
from tiled_sampling import record_forwards, sample, tiled
from tiny_models import image, latents, random_adapter, untrained_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.patch.additions import KeptAdditions
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.tiling.grid import tile_grid

SIZE = (16, 24)
SHAPE = (1, 4, *SIZE)
TILES = tile_grid(*SIZE, 8, 2)
WHOLE = torch.ones(1, *SIZE)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def base(loaded) -> Any:
    """A MODEL that restores one LQ latent."""
    return host.condition_on_lq(loaded[0], latents(1, SIZE, seed=7))


@pytest.fixture(scope="module")
def ada(base) -> Any:
    return random_adapter(base, 1, "Ada")


@pytest.fixture(scope="module")
def bob(base) -> Any:
    return random_adapter(base, 2, "Bob")


def half(left: bool) -> Tensor:
    mask = torch.zeros(1, *SIZE)
    mask[:, :, : SIZE[1] // 2] = 1
    return mask if left else 1 - mask


def run(model: Any, batch: int = 1, shape: tuple[int, ...] = SHAPE, **settings: Any) -> Tensor:
    return sample(tiled(model, SIZE, batch=batch, **settings), shape)


def count_blocks(monkeypatch: pytest.MonkeyPatch, model: Any, number: int) -> list[int]:
    """Returns a list that gets the batch of each run of an identity's first block."""
    batches: list[int] = []
    adapter = restorer_wrapper(model).identities[number].adapter
    block = adapter.block(adapter.sites[0])
    add = KeptAdditions.add

    def noting(self: KeptAdditions, h: Tensor, context: Tensor, parts: Any) -> Tensor:
        if any(part.block is block for part in parts):
            batches.append(len(h))
        return add(self, h, context, parts)

    monkeypatch.setattr(KeptAdditions, "add", noting)
    return batches


@pytest.mark.parametrize("batch", [1, 5])
def test_law_1_in_tiles(base, ada, batch: int) -> None:
    expected = run(base, batch)
    for mask in (None, WHOLE):
        nobody = host.apply_identity(base, ada, 0.0, mask)
        untrained = host.apply_identity(base, untrained_adapter(base), 1.0, mask)
        assert torch.equal(run(nobody, batch), expected)
        assert torch.equal(run(untrained, batch), expected)
    empty = host.apply_identity(base, ada, 1.0, 0 * WHOLE)
    assert torch.equal(run(empty, batch), expected)
    everywhere = run(host.apply_identity(base, ada, 1.0), batch)
    assert torch.equal(run(host.apply_identity(base, ada, 1.0, WHOLE), batch), everywhere)
    assert relative_l2(everywhere, expected) > 1e-2


def test_law_1_with_a_mask_over_some_tiles(base, ada) -> None:
    """The mask groups the tiles of a batch otherwise, so bit for bit one by one only."""
    nobody = host.apply_identity(base, ada, 0.0, half(True))
    assert torch.equal(run(nobody), run(base))
    assert relative_l2(run(nobody, 5), run(base, 5)) < 1e-5


@pytest.mark.parametrize("batch", [1, 4])
def test_a_tile_outside_the_mask_runs_no_block(monkeypatch, base, ada, batch: int) -> None:
    mask = torch.zeros(1, *SIZE)
    mask[:, 7, 1] = 1  # in two tiles
    model = host.apply_identity(base, ada, 1.0, mask)
    ran = count_blocks(monkeypatch, model, 0)
    model, forwards = record_forwards(model)
    run(model, batch)
    assert sum(ran) == 2 * 2 * 2  # two tiles, two halves of guidance, two steps
    assert sum(f.x.shape[0] for f in forwards) == len(TILES) * 2 * 2


def test_masks_reach_tiles_as_their_crops(base, ada) -> None:
    """A face that a border of tiles splits."""
    mask = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(3))
    model, forwards = record_forwards(host.apply_identity(base, ada, 1.0, mask))
    # the recorder stands inside the restorer's wrapper, which takes the masks out
    seen: list[Tensor] = []
    model = note_masks(model, seen)
    run(model)
    assert forwards and len(seen) == 2 * len(TILES)
    for k, found in enumerate(seen):
        expected = TILES[k % len(TILES)].crop(mask)
        assert torch.equal(found.cpu(), expected.expand(2, 1, -1, -1))


def note_masks(model: Any, seen: list[Tensor]) -> Any:
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, *args, **kwargs):
        (mask,) = (x for name, x in kwargs.items() if name.startswith("pfstorer_mask_"))
        seen.append(mask.clone())
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return model


def test_tiles_of_one_person_are_those_of_the_person_alone(base, ada, bob) -> None:
    """Tiles that meet one mask alone; far from the other, nothing of that person is seen."""
    far = torch.zeros(1, *SIZE)
    far[:, :, :4] = 1
    both = host.apply_identity(host.apply_identity(base, ada, 1.0, far), bob, 1.0, far.flip(-1))
    only_ada = host.apply_identity(base, ada, 1.0, far)
    only_bob = host.apply_identity(base, bob, 1.0, far.flip(-1))
    settings = {"tile": 12, "overlap": 0.0}  # two columns of tiles
    results = [run(m, **settings) for m in (both, only_ada, only_bob, base)]
    together, ada_alone, bob_alone, nobody = results
    torch.testing.assert_close(together[..., :12], ada_alone[..., :12])
    torch.testing.assert_close(together[..., 12:], bob_alone[..., 12:])
    torch.testing.assert_close(ada_alone[..., 12:], nobody[..., 12:])
    assert relative_l2(ada_alone[..., :12], nobody[..., :12]) > 1e-2
    swapped = host.apply_identity(host.apply_identity(base, bob, 1.0, far.flip(-1)), ada, 1.0, far)
    assert relative_l2(run(swapped, **settings), together) < 1e-5


@pytest.mark.parametrize("batch", [3, 64])
def test_batches_change_nothing(loaded, ada, bob, batch: int) -> None:
    """Masks per item, and tiles that meet nobody, one or both."""
    model = host.condition_on_lq(loaded[0], latents(2, SIZE, seed=7))
    masks = torch.cat([half(True), half(False)])
    model = host.apply_identity(model, ada, 1.0, masks)
    model = host.apply_identity(model, bob, 0.7, half(True) * 0.5)
    shape = (2, 4, *SIZE)
    one_by_one = run(model, 1, shape)
    assert relative_l2(run(model, batch, shape), one_by_one) < 1e-5
    for item in range(2):
        alone = host.condition_on_lq(loaded[0], latents(2, SIZE, seed=7)[item : item + 1])
        alone = host.apply_identity(alone, ada, 1.0, masks[item : item + 1])
        alone = host.apply_identity(alone, bob, 0.7, half(True) * 0.5)
        assert relative_l2(one_by_one[item : item + 1], run(alone)) < 1e-5


def test_references_serve_all_tiles(base, ada) -> None:
    model = host.apply_identity(base, ada, 1.0, references=latents(1, (12, 12), seed=4))
    model, forwards = record_forwards(model)
    out = run(model)
    assert out.isfinite().all()
    assert relative_l2(out, run(host.apply_identity(base, ada, 1.0))) > 1e-4
    assert len(forwards) == 2 * len(TILES)


def test_a_range_of_steps_in_tiles(monkeypatch, base, ada) -> None:
    model = host.apply_identity(base, ada, 1.0, half(True), 0.0, 0.5)
    ran = count_blocks(monkeypatch, model, 0)
    sample(tiled(model, SIZE), SHAPE, 1.0, steps=4)
    per_step = sum(bool(tile.crop(half(True)).any()) for tile in TILES)
    assert 0 < len(ran) < 4 * per_step and len(ran) % per_step == 0


def test_restoring_a_group_in_tiles_is_close_to_one_piece(loaded, ada, bob) -> None:
    """Random networks see a tile otherwise than the whole, but not wildly so."""
    pixels = image((64, 96))
    model = host.apply_identity(loaded[0], ada, 1.0, half(True))
    model = host.apply_identity(model, bob, 1.0, half(False))
    settings = {"steps": 2, "color_fix": "none"}
    whole = host.restore(model, loaded[2], pixels, **settings)
    tiles = host.restore(model, loaded[2], pixels, tile_size=64, overlap=0.5, **settings)
    base = host.restore(*loaded[::2], pixels, **settings)
    assert relative_l2(tiles, whole) < relative_l2(base, whole)
