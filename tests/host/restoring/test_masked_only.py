"""Only what lies in identities' masks is restored."""

from typing import Any

import pytest
import torch
from golden_weights import relative_l2
from tiled_sampling import record_forwards
from tiny_models import image, random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.pictures import color
from pfstorer_core.pictures.resizing import resize_bicubic

SIZE = (96, 128)
VAE_TOLERANCE = 0.03  # its normalisation looks beyond the masks
SETTINGS = {"steps": 2, "tile_size": 32, "tile_batch": 1, "masked_only": True}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def ada(loaded) -> Any:
    return random_adapter(loaded[0], 1, "Ada")


def box(y0: int, x0: int, y1: int, x1: int, size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(1, *size)
    mask[:, y0:y1, x0:x1] = 1
    return mask


def restore(model: Any, vae: Any, pixels: Tensor, **settings: Any) -> Tensor:
    return host.restore(model, vae, pixels, **{**SETTINGS, **settings})


def scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return resize_bicubic(pixels.movedim(-1, 1), size).movedim(1, -1)


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("color_fix", ["none", "wavelet", "adain"])
def test_outside_the_masks_the_picture_is_only_scaled(loaded, ada, scale, color_fix: str) -> None:
    mask = box(30, 40, 70, 90)
    model = host.apply_identity(loaded[0], ada, 1.0, mask)
    pixels = image(SIZE)
    size = (round(96 * scale), round(128 * scale))
    out = restore(model, loaded[2], pixels, scale=scale, color_fix=color_fix)
    outside = resize_bicubic(mask[:, None], size)[0, 0] <= 0
    outside &= torch.nn.functional.interpolate(mask[:, None], size, mode="area")[0, 0] == 0
    expected = scaled(pixels, size)
    assert torch.equal(out[0][outside], expected[0][outside])
    assert relative_l2(out[0][~outside], expected[0][~outside]) > 1e-2


def test_inside_it_is_what_the_whole_picture_gives(loaded, ada) -> None:
    mask = box(30, 40, 70, 90)
    model = host.apply_identity(loaded[0], ada, 1.0, mask)
    settings = {"color_fix": "none", "feather": 0, "overlap": 0.0}
    some = restore(model, loaded[2], image(SIZE), **settings)
    whole = restore(model, loaded[2], image(SIZE), masked_only=False, **settings)
    assert relative_l2(some[:, 30:70, 40:90], whole[:, 30:70, 40:90]) < VAE_TOLERANCE
    soft = restore(model, loaded[2], image(SIZE), **{**settings, "feather": 8})
    assert torch.equal(soft[:, 38:62, 48:82], some[:, 38:62, 48:82])
    assert not torch.equal(soft[:, 30:38, 40:90], some[:, 30:38, 40:90])


def test_tiles_outside_the_masks_are_not_computed(loaded, ada) -> None:
    model, forwards = record_forwards(host.apply_identity(loaded[0], ada, 1.0, box(0, 0, 8, 8)))
    restore(model, loaded[2], image(SIZE))
    assert len(forwards) == 2  # one tile, two steps
    assert all(f.x.shape == (1, 4, 8, 8) for f in forwards)


def test_the_colour_fix_sees_the_picture_where_nothing_was_decoded(loaded, ada) -> None:
    size = (64, 1200)  # three tiles of the VAE, of which the mask meets one
    mask = box(0, 0, 64, 380, size)
    model = host.apply_identity(loaded[0], ada, 1.0, mask)
    pixels = image(size)
    settings = {"tile_size": 128, "feather": 0, "steps": 1}
    plain = restore(model, loaded[2], pixels, color_fix="none", **settings)
    out = restore(model, loaded[2], pixels, color_fix="adain", **settings)
    expected = color.adain_fix(plain.movedim(-1, 1), pixels.movedim(-1, 1)).movedim(1, -1)
    # `plain` lacks what the tile has beyond the mask
    torch.testing.assert_close(out[:, :, :380], expected[:, :, :380], rtol=0, atol=0.06)


def test_all_of_a_tile_that_meets_a_mask_is_encoded(loaded, ada) -> None:
    """And what smaller tiles would see, should memory run out; the rest is not."""
    size = (16, 1800)  # five tiles of the VAE, 384 px apart
    mask = box(0, 320, 16, 324, size)  # tiles of the sampler: 0 to 384 and 288 to 672 px
    model, forwards = record_forwards(host.apply_identity(loaded[0], ada, 1.0, mask))
    widths: list[int] = []
    stem = loaded[2].first_stage_model.encoder.stem
    hook = stem.register_forward_hook(lambda _, args, out: widths.append(args[0].shape[3]))
    restore(model, loaded[2], image(size), tile_size=384, steps=1, upscaling="one pass")
    hook.remove()
    assert len(forwards) == 2
    assert widths == [128] * 3


def test_several_masks_and_items(loaded, ada) -> None:
    first, second = box(0, 0, 20, 20), torch.cat([box(0, 0, 0, 0), box(70, 90, 96, 128)])
    model = host.apply_identity(loaded[0], ada, 1.0, first)
    model = host.apply_identity(model, ada, 0.0, second)
    pixels = image(SIZE, batch=2)
    out = restore(model, loaded[2], pixels, feather=4)
    changed = (out != pixels).any(-1)
    assert changed[0, 5:15, 5:15].all() and changed[1, 5:15, 5:15].all()
    assert not changed[0, 70:, 90:].any() and changed[1, 85:, 110:].all()
    assert not changed[:, 20:70].any()


def test_empty_masks_leave_the_picture_and_are_told(loaded, ada) -> None:
    model, forwards = record_forwards(host.apply_identity(loaded[0], ada, 1.0, box(0, 0, 0, 0)))
    report = RestoreReport()
    pixels = image(SIZE)
    out = restore(model, loaded[2], pixels, report=report)
    assert torch.equal(out, pixels) and not forwards
    assert any("(the mask is empty, so nothing is done" in line for line in report.lines)
    assert "All masks are empty, so the picture is only scaled" in report.lines
    twice = restore(model, loaded[2], pixels, scale=2.0)
    assert torch.equal(twice, scaled(pixels, (192, 256)))


def test_gamma_0_still_restores_its_mask(loaded, ada) -> None:
    report = RestoreReport()
    model = host.apply_identity(loaded[0], ada, 0.0, box(30, 40, 70, 90))
    plain = {"color_fix": "none", "overlap": 0.0}
    out = restore(model, loaded[2], image(SIZE), report=report, feather=0, **plain)
    base = host.restore(*loaded[::2], image(SIZE), steps=2, tile_size=32, **plain)
    assert relative_l2(out[:, 30:70, 40:90], base[:, 30:70, 40:90]) < VAE_TOLERANCE
    assert any("gamma 0 is the base: the identity is not used" in line for line in report.lines)


@pytest.mark.parametrize("people", [0, 1])
def test_no_mask_at_all(loaded, ada, people: int) -> None:
    model = host.apply_identity(loaded[0], ada) if people else loaded[0]
    with pytest.raises(PFStorerError, match="no identity has a mask; connect masks to"):
        restore(model, loaded[2], image(SIZE))


def test_progressive_upscaling(loaded, ada) -> None:
    mask = box(4, 4, 28, 28, (32, 32))  # a head as trained at four times the size
    model = host.apply_identity(loaded[0], ada, 1.0, mask)
    pixels = image((32, 32))
    report = RestoreReport()
    settings = {"upscaling": "progressive", "tile_size": 64, "report": report}
    out = restore(model, loaded[2], pixels, scale=8.0, **settings)
    expected = scaled(pixels, (256, 256))
    assert torch.equal(out[:, :32], expected[:, :32])
    assert relative_l2(out[:, 64:192, 64:192], expected[:, 64:192, 64:192]) > 1e-2
    assert any(line.startswith("Pass 1 of 2, ") for line in report.lines)
