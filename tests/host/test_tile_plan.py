"""Tile size and batch chosen from the free memory."""

from typing import Any

import comfy.model_management as mm
import pytest
from tiny_models import image, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.progress import RestoreReport
from pfstorer_core.host.tile_plan import check_pictures, plan_tiles

CELL = 4
SHAPE = (1, 4, 200, 300)  # 800 x 1200 px
TRAINED = 32
RESERVE = 1.5  # what the host, too, asks for beyond its estimate


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def model(loaded) -> Any:
    return loaded[0]


def set_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: free)


def cost(model: Any, side: int, count: int) -> float:
    return RESERVE * model.model.memory_required([count, 4, side, side])


@pytest.fixture
def best(model, monkeypatch) -> int:
    """Side of the tiles where memory does not matter."""
    set_free(monkeypatch, 2.0**40)
    return plan_tiles(model, SHAPE, CELL).layout.tile


def test_plenty_of_memory_gives_tiles_near_the_trained_size_in_large_batches(model, best) -> None:
    layout = plan_tiles(model, SHAPE, CELL).layout
    assert TRAINED <= layout.tile <= 2 * TRAINED and layout.tile % 2 == 0
    assert layout.batch == 8
    assert (layout.height, layout.width) == SHAPE[2:]


def test_the_batch_is_no_larger_than_the_number_of_tiles(model, monkeypatch) -> None:
    set_free(monkeypatch, 2.0**40)
    for batch, height, width in ((1, 32, 32), (3, 32, 32), (1, 32, 100), (1, 60, 500)):
        layout = plan_tiles(model, (batch, 4, height, width), CELL).layout
        assert layout.batch == min(8, batch * len(layout.tiles))


def test_less_memory_gives_smaller_batches_then_smaller_tiles(model, best, monkeypatch) -> None:
    found = []
    for free in (3.5 * cost(model, best, 1), 0.9 * cost(model, best, 1), cost(model, 6, 1), 1.0):
        set_free(monkeypatch, free)
        plan = plan_tiles(model, SHAPE, CELL)
        found.append(plan.layout)
        assert plan.memory <= free or free == 1.0
        assert plan.free == free
    assert (found[0].tile, found[0].batch) == (best, 3)
    assert 4 < found[1].tile < best and found[1].batch >= 1
    assert found[2].tile <= 6
    # the smallest; the run then tells what happens
    assert 4 <= found[3].tile <= 6 and found[3].batch == 1


def test_guidance_doubles_the_need(model, best, monkeypatch) -> None:
    set_free(monkeypatch, cost(model, best, 4) * 1.01)
    alone = plan_tiles(model, SHAPE, CELL, cfg=1.0)
    guided = plan_tiles(model, SHAPE, CELL, cfg=2.0)
    assert (alone.layout.batch, guided.layout.batch) == (4, 2)
    assert alone.memory == pytest.approx(guided.memory)


def test_values_of_the_user_are_taken(model, monkeypatch) -> None:
    set_free(monkeypatch, 1.0)
    layout = plan_tiles(model, SHAPE, CELL, tile_size=90, overlap=0.5, tile_batch=7).layout
    assert (layout.tile, layout.overlap, layout.batch) == (22, 0.5, 7)
    tiles = layout.tiles
    assert {tile.size for tile in tiles} == {(22, 22)}
    assert tiles[1].y0 == 11


def test_the_plan_in_words(model, monkeypatch) -> None:
    set_free(monkeypatch, 2.0**31)
    plan = plan_tiles(model, SHAPE, CELL, tile_size=128, tile_batch=2)
    many = str(plan)
    assert many.startswith(
        f"{len(plan.layout.tiles)} tiles of 128 x 128 px that overlap by 32 px or more, 2 at once; "
    )
    assert " MiB of 2.0 GiB free memory, and " in many
    one = str(plan_tiles(model, (1, 4, 16, 32), CELL))
    assert one.startswith("1 tile of 128 x 64 px; about ")


def test_the_estimate_is_told_before_the_start(loaded) -> None:
    report = RestoreReport()
    host.restore(loaded[0], loaded[2], image((64, 96)), steps=1, tile_size=32, report=report)
    assert report.lines[0].startswith("96 x 64 px in 12 tiles of 32 x 32 px that overlap by 8 px")
    assert report.lines[-1].startswith("Done in ")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"overlap": 0.8}, r"The overlap is 0.8; choose a share of the tile from 0 to 0.75"),
        ({"overlap": -0.1}, r"The overlap is -0.1"),
        ({"tile_size": 12}, r"Tiles of 12 px are too small for this restorer; choose 16 px or"),
        ({"tile_batch": -1}, r"numbers of 0 \(automatic\) or more"),
    ],
)
def test_settings_out_of_range(loaded, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PFStorerError, match=sentence):
        host.restore(loaded[0], loaded[2], image(), steps=1, **settings)


def test_pictures_that_main_memory_cannot_hold(loaded, monkeypatch) -> None:
    with monkeypatch.context() as small:
        set_free(small, 2.0**20)
        with pytest.raises(PFStorerError, match=r"An output of 640 x 640 pixels, 2 of them, needs"):
            host.restore(loaded[0], loaded[2], image((32, 32), batch=2), scale=20)
        check_pictures((1, 4, 16, 16), CELL)


def test_on_a_gpu_models_that_can_be_unloaded_count_as_free(model, monkeypatch) -> None:
    if mm.is_device_cpu(model.load_device):
        pytest.skip("needs a GPU")
    mm.load_models_gpu([model])
    loaded = plan_tiles(model, SHAPE, CELL).free
    mm.unload_all_models()
    assert plan_tiles(model, SHAPE, CELL).free == pytest.approx(loaded, rel=0.05)
