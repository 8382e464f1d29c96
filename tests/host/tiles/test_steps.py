"""Steps of ComfyUI's samplers run tile by tile."""

from typing import Any

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from golden_weights import relative_l2
from tiled_sampling import KEY, at_step, record_forwards, sample, tiled
from tiny_models import latents, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.base import RESTORER_KEY
from pfstorer_core.host.conditions import with_options
from pfstorer_core.host.patch import ahead
from pfstorer_core.host.patch.lq import STEP
from pfstorer_core.host.patch.model import set_lq_latent
from pfstorer_core.host.tiles.layout import TileLayout
from pfstorer_core.host.tiles.steps import TiledSteps
from pfstorer_core.tiling.grid import gaussian_weight, tile_grid

SIZE = (18, 23)  # no multiple of the tile or of the UNet's step


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory):
    return write_bundled(tmp_path_factory.mktemp("restorers") / "tiny.safetensors")


@pytest.fixture(scope="module")
def bare(path) -> Any:
    """A restorer's MODEL."""
    return host.load_base_restorer(path)[0]


def restoring(model: Any, size: tuple[int, int] = SIZE, batch: int = 1) -> Any:
    return host.condition_on_lq(model, latents(batch, size, seed=7))


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_law_3_one_tile_is_no_tiles(bare, sampler_name: str, cfg: float) -> None:
    model = restoring(bare, (16, 12))
    plain = sample(model, (1, 4, 16, 12), cfg, sampler_name=sampler_name)
    one = sample(tiled(model, (16, 12), tile=16), (1, 4, 16, 12), cfg, sampler_name=sampler_name)
    assert torch.equal(one, plain)


def test_law_3_one_tile_of_each_item_is_no_tiles(bare) -> None:
    model, forwards = record_forwards(restoring(bare, (16, 12), batch=3))
    plain = sample(model, (3, 4, 16, 12))
    assert {f.x.shape[0] for f in forwards} == {6}
    for batch in (1, 2):
        forwards.clear()
        one = sample(tiled(model, (16, 12), tile=16, batch=batch), (3, 4, 16, 12))
        assert max(f.x.shape[0] for f in forwards) == 2 * batch
        assert relative_l2(one, plain) < 1e-5


def area_conds(conds: Any, layout: TileLayout, device: torch.device) -> Any:
    """Gives each condition once per tile, with its area and Gaussian weight as the host's mask."""
    tiles = tile_grid(layout.height, layout.width, layout.tile, int(layout.tile * layout.overlap))
    split = []
    for cond in conds:
        parts = []
        for y0, x0, y1, x1 in tiles:
            mask = torch.zeros(1, layout.height, layout.width, device=device)
            mask[:, y0:y1, x0:x1] = gaussian_weight(y1 - y0, x1 - x0)
            area = (y1 - y0, x1 - x0, y0, x0)
            parts += [{**c, "area": area, "mask": mask} for c in cond]
        split.append(parts)
    return split


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("items", "batch"), [(1, 1), (2, 3)])
def test_tiles_equal_the_hosts_areas(bare, overlap: float, items: int, batch: int) -> None:
    layout = TileLayout(*SIZE, 8, overlap, batch, 2)
    errors = []

    def compare(executor, model, conds, x, sigma, options) -> None:
        ours = TiledSteps(layout)(executor, model, conds, x, sigma, options)
        options = with_options(options, {STEP: None})  # each area has features of its own
        theirs = executor(model, area_conds(conds, layout, x.device), x, sigma, options)
        whole = executor(model, conds, x, sigma, options)
        errors.extend(relative_l2(a, b) for a, b in zip(ours, theirs, strict=True))
        assert all(relative_l2(a, b) > 1e-2 for a, b in zip(ours, whole, strict=True))

    sample(at_step(restoring(bare, batch=items), compare), (items, 4, *SIZE), steps=1)
    assert len(errors) == 2 and max(errors) < 1e-5


def test_a_guided_step_is_the_sum_of_its_halves(bare) -> None:
    steps = TiledSteps(TileLayout(*SIZE, 8, 0.25, 2, 2))

    def compare(executor, model, conds, x, sigma, options) -> None:
        both = steps(executor, model, conds, x, sigma, options)
        alone = [
            steps(executor, model, [conds[0], None], x, sigma, options)[0],
            steps(executor, model, [None, conds[1]], x, sigma, options)[1],
        ]
        assert all(relative_l2(a, b) < 1e-5 for a, b in zip(both, alone, strict=True))
        assert relative_l2(both[0], both[1]) > 1e-3

    sample(at_step(restoring(bare), compare), (1, 4, *SIZE), steps=1)


@pytest.mark.parametrize("batch", [5, 64])
def test_law_3_batches_of_tiles_and_items(bare, batch: int) -> None:
    model, forwards = record_forwards(restoring(bare, batch=3))
    together = sample(tiled(model, SIZE, batch=batch), (3, 4, *SIZE))
    tiles = len(TileLayout(*SIZE, 8).tiles)
    assert max(f.x.shape[0] for f in forwards) == 2 * min(batch, 3 * tiles)
    for item in range(3):
        lq_latent = latents(3, SIZE, seed=7)[item : item + 1]
        one = tiled(host.condition_on_lq(bare, lq_latent), SIZE)
        assert relative_l2(together[item : item + 1], sample(one, (1, 4, *SIZE))) < 1e-5


def test_a_lora_acts_in_tiles(path, bare) -> None:
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    generator = torch.Generator().manual_seed(1)
    weight = bare.model.get_submodule(key).weight
    up = torch.randn(weight.shape[0], 2, generator=generator) / 4
    down = torch.randn(2, weight.shape[1], generator=generator) / 4
    name = "lora_unet_" + key.removeprefix("diffusion_model.").replace(".", "_")
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    patched, _ = comfy.sd.load_lora_for_models(bare, None, lora, 1.0, 0.0)

    merged = host.load_base_restorer(path)[0]
    with torch.no_grad():
        merged.model.get_submodule(key).weight.add_(up @ down)
    with_lora, expected, without = (
        sample(tiled(restoring(m), SIZE), (1, 4, *SIZE)) for m in (patched, merged, bare)
    )
    # the device rounds the product of its factors in its own way
    assert relative_l2(with_lora, expected) < 3e-5
    assert relative_l2(with_lora, without) > 1e-4


def test_tiles_outside_the_region_are_not_computed(bare) -> None:
    region = torch.zeros(2, 1, *SIZE)
    region[0, :, 9, 3] = 0.1  # in the tile of rows 6 to 14 and columns 0 to 8
    model, forwards = record_forwards(restoring(bare, batch=2))
    lq_latent = model.get_model_object("latent_format").process_in(latents(2, SIZE, seed=7))

    def compare(executor, base, conds, x, sigma, options) -> None:
        layout = TileLayout(*SIZE, 8, 0.25, 1, 2)
        (whole, _) = TiledSteps(layout)(executor, base, conds, x, sigma, options)
        forwards.clear()
        (some, _) = TiledSteps(layout, region)(executor, base, conds, x, sigma, options)
        assert [f.x.shape[0] for f in forwards] == [1]
        assert relative_l2(some[:1, :, 9:11, :5], whole[:1, :, 9:11, :5]) < 0.05
        expected = lq_latent.to(some, copy=True)
        expected[0, :, 6:14, :8] = some[0, :, 6:14, :8]
        assert torch.equal(some, expected)
        (all_met, _) = TiledSteps(layout, region + 1)(executor, base, conds, x, sigma, options)
        assert torch.equal(all_met, whole)

    sample(at_step(model, compare), (2, 4, *SIZE), 1.0, steps=1)


def test_progress_tells_each_batch_of_tiles(bare) -> None:
    told: list[tuple[int, int]] = []
    model = tiled(restoring(bare), SIZE, batch=5, on_tiles=lambda *args: told.append(args))
    sample(model, (1, 4, *SIZE), 1.0, steps=2)
    assert told == [(5, 12), (10, 12), (12, 12)] * 2


def test_the_host_makes_room_for_tiles_only(bare) -> None:
    shapes: list[list[int]] = []

    def note(executor, model, noise_shape, *args, **kwargs):
        shapes.append(list(noise_shape))
        return executor(model, noise_shape, *args, **kwargs)

    for settings in ({"batch": 3}, {"batch": 50}, {"tile": 20}):
        model = tiled(restoring(bare, batch=2), SIZE, **settings)
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, note)
        sample(model, (2, 4, *SIZE), 1.0, steps=1)
    assert shapes == [[3, 4, 8, 8], [24, 4, 8, 8], [1, 4, 18, 20]]


def test_an_interruption_ends_the_step_between_tiles(bare) -> None:
    def interrupt(done: int, total: int) -> None:
        mm.interrupt_current_processing()

    model, forwards = record_forwards(restoring(bare))
    model = tiled(model, SIZE, batch=2, on_tiles=interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        sample(model, (1, 4, *SIZE), 1.0)
    assert len(forwards) == 1
    assert not mm.processing_interrupted()


class TestEncoderInterval:
    @pytest.fixture(autouse=True)
    def one_by_one(self, monkeypatch) -> None:
        """As on a CPU."""
        monkeypatch.setattr(ahead, "steps_at_once", lambda device: 1)

    def encodings(self, model: Any) -> list[int]:
        batches: list[int] = []
        encoder = model.get_additional_models_with_key(RESTORER_KEY)[0].model.encoder
        encoder.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
        return batches

    def run(self, path, interval: int, tile: int, **settings: Any) -> tuple[Tensor, list[int]]:
        bare = host.load_base_restorer(path)[0]
        latent = bare.get_model_object("latent_format").process_in(latents(1, SIZE, seed=7))
        model = set_lq_latent(bare, latent, interval)
        batches = self.encodings(bare)
        model = tiled(model, SIZE if tile == 8 else (16, 16), tile=tile, batch=5)
        return sample(model, (1, 4, *SIZE), steps=5, **settings), batches

    def test_in_tiles_the_encoder_runs_every_so_many_steps(self, path) -> None:
        exact, every = self.run(path, 1, 8)
        default = sample(
            tiled(restoring(host.load_base_restorer(path)[0]), SIZE, batch=5),
            (1, 4, *SIZE),
            steps=5,
        )
        assert torch.equal(exact, default)
        assert every == [5, 5, 2] * 5
        reused, fewer = self.run(path, 2, 8)
        assert fewer == [5, 5, 2] * 3
        once, one = self.run(path, 100, 8)
        assert one == [5, 5, 2]
        assert 0 < relative_l2(reused, exact) < relative_l2(once, exact)

    def test_samplers_that_ask_twice_at_a_sigma_count_once(self, path) -> None:
        _, every = self.run(path, 1, 8, sampler_name="heun")
        _, fewer = self.run(path, 2, 8, sampler_name="heun")
        assert len(every) == 3 * 9
        assert len(fewer) == 3 * 3

    def test_on_a_gpu_several_steps_of_a_tile_are_encoded_at_once(self, path, monkeypatch) -> None:
        exact, _ = self.run(path, 1, 8)
        monkeypatch.setattr(ahead, "steps_at_once", lambda device: 4)
        together, batches = self.run(path, 1, 8)
        assert batches == [5 * 4, 5 * 4, 2 * 4, 5, 5, 2]
        assert relative_l2(together, exact) < 1e-5
        monkeypatch.setattr(ahead, "_KEPT", 8 * 8 * 4 * 7)  # for seven tiles and a bit
        assert torch.equal(self.run(path, 1, 8)[0], together) or relative_l2(together, exact) < 1e-5
        _, batches = self.run(path, 1, 8, sampler_name="heun")
        assert len(batches) > 3 * 2

    def test_nothing_is_kept_by_default(self, bare) -> None:
        model = tiled(restoring(bare), SIZE)
        sample(model, (1, 4, *SIZE), steps=1)
        (condition,) = model.get_wrappers(WrappersMP.CALC_COND_BATCH, RESTORER_KEY)
        assert condition._memory._steps == {}
