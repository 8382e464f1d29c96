"""Tile size and batch chosen from the free memory."""

from typing import Any

import comfy.model_management as mm
import pytest
from device import free_memory
from tiny_models import image, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.tiles import plan as tile_plan
from pfstorer_core.host.tiles.plan import TileChoice, _best_tile, check_pictures, plan_tiles
from pfstorer_core.tiling.grid import tile_grid

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
    """So much main memory, and as much for a model's tiles once it is on its device."""
    monkeypatch.setattr(mm, "get_free_memory", free_memory(free))
    monkeypatch.setattr(tile_plan, "available_memory", lambda model: free)


def cost(model: Any, side: int, count: int) -> float:
    return RESERVE * model.model.memory_required([count, 4, side, side])


@pytest.fixture
def best(model, monkeypatch) -> int:
    """Side of the tiles where memory does not matter."""
    set_free(monkeypatch, 2.0**40)
    return plan_tiles(model, SHAPE, CELL).layout.tile


def test_plenty_of_memory_gives_the_tiles_that_cover_the_latent_with_the_least_work() -> None:
    def covered(tile: int) -> int:
        return sum(h * w for h, w in (t.size for t in tile_grid(200, 300, tile, tile // 4)))

    sides = range(TRAINED * 5 // 4, TRAINED * 3 // 2 + 1, 2)
    found = _best_tile(200, 300, TRAINED, 0.25, 2)
    assert found in sides and covered(found) == min(map(covered, sides))


def test_a_small_latent_is_one_tile() -> None:
    assert _best_tile(2 * TRAINED, 40, TRAINED, 0.25, 2) == 2 * TRAINED
    tile = _best_tile(2 * TRAINED + 2, 40, TRAINED, 0.25, 2)
    assert tile <= 2 * TRAINED and len(tile_grid(2 * TRAINED + 2, 40, tile, tile // 4)) > 1


def test_the_batch_is_no_larger_than_useful_or_than_the_number_of_tiles(model, monkeypatch) -> None:
    set_free(monkeypatch, 2.0**40)
    for batch, height, width in ((1, 32, 32), (3, 32, 32), (1, 32, 100), (1, 60, 500)):
        shape = (batch, 4, height, width)
        layout = plan_tiles(model, shape, CELL, TileChoice(tile_size=TRAINED * CELL)).layout
        assert layout.batch == min(8, batch * len(layout.tiles))
    large = plan_tiles(model, SHAPE, CELL, TileChoice(tile_size=2 * TRAINED * CELL)).layout
    assert large.batch == 2, "as much work at once as eight tiles of the trained size"


def test_less_memory_gives_smaller_batches(model, monkeypatch) -> None:
    set_free(monkeypatch, 3.5 * cost(model, TRAINED, 1))
    plan = plan_tiles(model, SHAPE, CELL, TileChoice(tile_size=TRAINED * CELL))
    assert plan.layout.batch == 3 and plan.memory <= plan.free


def test_less_memory_gives_smaller_tiles(model, best, monkeypatch) -> None:
    for free in (0.9 * cost(model, best, 1), cost(model, 6, 1), 1.0):
        set_free(monkeypatch, free)
        plan = plan_tiles(model, SHAPE, CELL)
        assert plan.memory <= free or free == 1.0
        assert plan.free == free and 4 <= plan.layout.tile < best
    # the smallest; the run then tells what happens
    assert plan.layout.tile <= 6 and plan.layout.batch == 1


def test_guidance_doubles_the_need(model, monkeypatch) -> None:
    set_free(monkeypatch, cost(model, TRAINED, 4) * 1.01)
    alone = plan_tiles(model, SHAPE, CELL, TileChoice(tile_size=TRAINED * CELL, cfg=1.0))
    guided = plan_tiles(model, SHAPE, CELL, TileChoice(tile_size=TRAINED * CELL, cfg=2.0))
    assert (alone.layout.batch, guided.layout.batch) == (4, 2)
    assert alone.memory == pytest.approx(guided.memory)


def test_values_of_the_user_are_taken(model, monkeypatch) -> None:
    set_free(monkeypatch, 1.0)
    layout = plan_tiles(
        model, SHAPE, CELL, TileChoice(tile_size=90, overlap=0.5, tile_batch=7)
    ).layout
    assert (layout.tile, layout.overlap, layout.batch) == (22, 0.5, 7)
    tiles = layout.tiles
    assert {tile.size for tile in tiles} == {(22, 22)}
    assert tiles[1].y0 == 11


def test_the_plan_in_words(model, monkeypatch) -> None:
    set_free(monkeypatch, 2.0**31)
    plan = plan_tiles(model, SHAPE, CELL, TileChoice(tile_size=128, tile_batch=2))
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
