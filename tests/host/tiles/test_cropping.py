"""Conditions cut to tiles, against what ComfyUI makes of them for the whole latent."""

import copy
import itertools
from typing import Any

import comfy.cldm.cldm
import comfy.conds
import comfy.controlnet
import comfy.ops
import comfy.samplers
import comfy.t2i_adapter.adapter
import comfy.utils
import pytest
import torch
from golden_weights import relative_l2
from tiled_sampling import at_step, record_forwards, sample, tiled
from tiny_models import UNET, image, latents, prompt, randomise, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.conditions import has_areas
from pfstorer_core.host.tiles.cropping import Unit, check_conditioning, crop_conds
from pfstorer_core.host.tiles.layout import TileLayout
from pfstorer_core.host.tiles.steps import TiledSteps
from pfstorer_core.tiling.grid import Tile, tile_grid

SIZE = (18, 23)
TILES = tile_grid(*SIZE, 8, 2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def model(loaded) -> Any:
    """A MODEL that restores one LQ latent."""
    return host.condition_on_lq(loaded[0], latents(1, SIZE, seed=7))


def soft_mask(rows: int = 1) -> Tensor:
    return torch.rand(rows, *SIZE, generator=torch.Generator().manual_seed(5))


def mask_with_hole() -> Tensor:
    mask = torch.ones(1, *SIZE)
    mask[:, 4:12, 3:9] = 0
    return mask


class TestWeights:
    """Where and how much a condition counts."""

    CONDS = (
        {},
        {"strength": 0.5},
        {"mask": soft_mask()},
        {"mask": soft_mask(2), "mask_strength": 0.7},
        {"area": (10, 12, 4, 5), "strength": 0.5},
        {"area": (18, 9, 0, 0)},
        {"area": (9, 23, 9, 0)},
        {"area": (30, 30, 3, 3)},
        {"area": (10, 12, 4, 5), "mask": soft_mask(), "mask_strength": 0.7},
    )

    @pytest.mark.parametrize("options", CONDS, ids=lambda options: ",".join(options) or "plain")
    def test_in_tiles_are_those_of_the_whole(self, options: dict[str, Any]) -> None:
        x = latents(2, SIZE)
        cond = {**options, "model_conds": {}, "uuid": None}
        whole = torch.zeros_like(x)
        found = comfy.samplers.get_area_and_mult(cond, x, None)
        height, width, y0, x0 = found.area or (*SIZE, 0, 0)
        whole[:, :, y0 : y0 + height, x0 : x0 + width] = found.mult
        for tile in TILES:
            for item in range(2):
                part = tile.crop(x[item : item + 1])
                (cropped,) = crop_conds([[cond]], [Unit(item, tile)], x)
                weight = torch.zeros_like(part)
                for each in cropped:  # none where the area does not meet the tile
                    got = comfy.samplers.get_area_and_mult(each, part, None)
                    height, width, y0, x0 = got.area or (*tile.size, 0, 0)
                    window = Tile(y0, x0, y0 + height, x0 + width)
                    window.crop(weight).copy_(got.mult)
                    assert torch.equal(got.input_x, window.crop(part))
                torch.testing.assert_close(weight, tile.crop(whole[item : item + 1]))

    def test_a_batch_of_tiles_has_the_mask_of_each(self) -> None:
        x, mask = latents(2, SIZE), soft_mask(2)
        units = [Unit(1, TILES[3]), Unit(0, TILES[3]), Unit(1, TILES[0])]
        ((cropped,),) = crop_conds([[{"mask": mask, "model_conds": {}}]], units, x)
        for row, (item, tile) in zip(cropped["mask"], units, strict=True):
            assert torch.equal(row, tile.crop(mask[item]))

    def test_an_area_elsewhere_leaves_the_condition_out(self) -> None:
        near, far = ({"area": (4, 4, 0, x), "model_conds": {}, "uuid": None} for x in (2, 18))
        conds = [[near, far], None, [far]]
        cropped = crop_conds(conds, [Unit(0, Tile(0, 0, 8, 8))], latents(1, SIZE))
        assert [cond and [c["area"] for c in cond] for cond in cropped] == [
            [(4, 4, 0, 2)],
            None,
            [],
        ]
        assert near.keys() == {"area", "model_conds", "uuid"} and has_areas(conds)
        assert not has_areas([None, [{"mask": soft_mask()}]])


def test_model_conditions_of_every_kind() -> None:
    x = latents(2, SIZE)
    wide, one, each = torch.rand(2, 1, *SIZE), torch.rand(1, 3, 5), torch.rand(2, 3, 5)
    conds = {
        "wide": comfy.conds.CONDNoiseShape(wide),
        "one": comfy.conds.CONDCrossAttn(one),
        "each": comfy.conds.CONDRegular(each),
        "constant": comfy.conds.CONDConstant(3),
        "list": comfy.conds.CONDList([one, each]),
    }
    units = [Unit(0, TILES[2]), Unit(1, TILES[2]), Unit(1, TILES[5])]
    ((cropped,),) = crop_conds([[{"model_conds": conds}]], units, x)
    got = {
        name: c.process_cond(batch_size=3, area=None) for name, c in cropped["model_conds"].items()
    }
    assert {name: type(c) for name, c in got.items()} == {n: type(c) for n, c in conds.items()}
    assert torch.equal(got["wide"].cond, torch.stack([u.tile.crop(wide[u.item]) for u in units]))
    assert torch.equal(got["one"].cond, one.expand(3, -1, -1))
    assert torch.equal(got["each"].cond, each[[0, 1, 1]])
    assert got["constant"].cond == 3
    assert torch.equal(got["list"].cond[0], one.expand(3, -1, -1))
    assert torch.equal(got["list"].cond[1], each[[0, 1, 1]])


class TestInTheSampler:
    """Several conditions at once, against running each of them alone in the same tiles."""

    def parts(self, model: Any, positive: list[Any], **settings: Any) -> list[tuple[Any, Any]]:
        """Returns at each step the tiled result and those of the conditions one by one."""
        steps = TiledSteps(TileLayout(*SIZE, 8, 0.25, 3, 2))
        found = []

        def run(executor, base, conds, x, sigma, options) -> None:
            plain = [{k: v for k, v in c.items() if k in ("model_conds", "uuid")} for c in conds[0]]
            alone = [steps(executor, base, [[c]], x, sigma, options)[0] for c in plain]
            found.append((steps(executor, base, conds, x, sigma, options)[0], alone))

        sample(at_step(model, run), (1, 4, *SIZE), 1.0, positive=positive, **settings)
        return found

    def test_masks_that_share_the_picture(self, model) -> None:
        left = torch.zeros(1, *SIZE)
        left[:, :, :10] = 1
        positive = [*prompt(1, mask=left), *prompt(2, mask=1 - left)]
        for both, (first, second) in self.parts(model, positive):
            assert relative_l2(first, second) > 1e-4
            torch.testing.assert_close(both[..., :10], first[..., :10])
            torch.testing.assert_close(both[..., 10:], second[..., 10:])

    def test_default_conditions_fill_what_masks_leave(self, model) -> None:
        hole = mask_with_hole()
        positive = [*prompt(1, mask=hole), *prompt(2, default=True)]
        for both, (first, second) in self.parts(model, positive):
            inside = hole.expand_as(both[0]) == 0
            torch.testing.assert_close(both[0][inside], second[0][inside])
            torch.testing.assert_close(both[0][~inside], first[0][~inside])

    def test_ranges_of_timesteps(self, model) -> None:
        positive = [*prompt(1, start_percent=0.0, end_percent=0.4)]
        positive += prompt(2, start_percent=0.4, end_percent=1.0)
        steps = self.parts(model, positive, steps=4)
        torch.testing.assert_close(steps[0][0], steps[0][1][0])
        torch.testing.assert_close(steps[-1][0], steps[-1][1][1])

    @pytest.mark.parametrize("area", [(10, 12, 4, 5), ("percentage", 0.5, 0.5, 0.25, 0.25)])
    def test_areas(self, model, area: tuple[Any, ...]) -> None:
        """One tile that an area cuts is what the host makes of the whole."""
        positive = [*prompt(1), *prompt(2, area=area)]
        errors = []

        def compare(executor, base, conds, x, sigma, options) -> None:
            whole = executor(base, conds, x, sigma, options)
            x2, sigma2 = torch.cat([x, x]), sigma.repeat(2)
            one = TiledSteps(TileLayout(*SIZE, 64, 0.25, 1, 2))  # two items force the cut
            both = one(executor, base, conds, x2, sigma2, options)
            errors.extend(relative_l2(both[0][k : k + 1], whole[0]) for k in (0, 1))

        sample(at_step(model, compare), (1, 4, *SIZE), 1.0, positive=positive)
        assert len(errors) == 4 and max(errors) < 1e-5

    def test_an_area_across_tiles_acts_inside_only(self, model) -> None:
        area = (10, 12, 4, 5)
        tiles = tiled(model, SIZE, batch=3)
        both = [*prompt(1), *prompt(2, area=area)]
        with_area = sample(tiles, (1, 4, *SIZE), 1.0, steps=1, positive=both)
        without = sample(tiles, (1, 4, *SIZE), 1.0, steps=1, positive=prompt(1))
        inside = torch.zeros(1, 4, *SIZE, dtype=torch.bool)
        inside[:, :, 4:14, 5:17] = True
        torch.testing.assert_close(with_area[~inside], without[~inside], rtol=1e-4, atol=1e-4)
        assert relative_l2(with_area[inside], without[inside]) > 1e-2


def tiny_controlnet(seed: int, ratio: int = 8) -> Any:
    """Returns ComfyUI's own ControlNet of random weights for the tiny UNet."""
    torch.manual_seed(seed)
    config = {k: v for k, v in UNET.items() if k != "transformer_depth_output"}
    del config["out_channels"]
    depth = {"transformer_depth": [0, 1], "num_res_blocks": [1, 1]}
    network = comfy.cldm.cldm.ControlNet(
        **{**config, **depth, "hint_channels": 3},
        operations=comfy.ops.manual_cast,
        dtype=torch.float32,
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    randomise(network, seed)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def controlled(*controls: Any, seed: int = 1) -> list[Any]:
    """Returns a CONDITIONING under a chain of ControlNets."""
    for previous, control in itertools.pairwise(controls):
        control.set_previous_controlnet(previous)
    return prompt(seed, control=controls[-1], control_apply_to_uncond=False)


def hint(size: tuple[int, int], seed: int, batch: int = 1) -> Tensor:
    return image(size, batch, seed).movedim(-1, 1)


PIXELS = (SIZE[0] * 8, SIZE[1] * 8)


class TestControlNets:
    @pytest.mark.parametrize("size", [PIXELS, (70, 100)])
    def test_each_tile_gets_its_part_of_the_hint(self, size: tuple[int, int]) -> None:
        control = tiny_controlnet(1).set_cond_hint(hint(size, 1, 2), 0.6)
        x = latents(2, SIZE)
        whole = comfy.utils.common_upscale(
            control.cond_hint_original, PIXELS[1], PIXELS[0], control.upscale_algorithm, "center"
        )
        units = [Unit(1, TILES[4]), Unit(0, TILES[4]), Unit(0, TILES[11])]
        ((cropped,),) = crop_conds([[{"control": control, "model_conds": {}}]], units, x)
        got = cropped["control"]
        expected = torch.stack([u.tile.scaled(8).crop(whole[u.item]) for u in units])
        assert torch.equal(got.cond_hint_original, expected)
        assert got.strength == 0.6 and got.control_model is control.control_model

    def test_the_network_sees_cropped_latents_and_hints(self, model) -> None:
        control = tiny_controlnet(1)
        picture = hint(PIXELS, 2)
        seen: list[tuple[Tensor, Tensor]] = []
        control.control_model.register_forward_hook(
            lambda module, args, kwargs, out: seen.append((kwargs["x"], kwargs["hint"])),
            with_kwargs=True,
        )
        recording, forwards = record_forwards(model)
        positive = controlled(control.set_cond_hint(picture, 0.8))
        sample(tiled(recording, SIZE, batch=5), (1, 4, *SIZE), 1.0, positive=positive, steps=1)
        assert len(seen) == len(forwards) == 3
        tiles = iter(TILES)
        for (x, hints), forward in zip(seen, forwards, strict=True):
            assert torch.equal(x, forward.x)
            parts = [next(tiles).scaled(8).crop(picture) for _ in x]
            assert torch.equal(hints.cpu(), torch.cat(parts))
            added = [c for group in forward.control.values() for c in group if c is not None]
            assert added and all(c.shape[0] == len(x) for c in added)

    @pytest.mark.parametrize("items", [1, 2])
    def test_tiles_equal_the_host_on_each_crop(self, loaded, items: int) -> None:
        """A chain of two; each tile as the host computes it alone from cropped pictures."""
        hints = [hint(PIXELS, k, items) for k in (3, 4)]
        networks = [tiny_controlnet(k) for k in (1, 2)]
        lq_latent = latents(items, SIZE, seed=7)

        def chain(tile: Tile | None = None, item: int = 0) -> list[Any]:
            cut = (
                hints if tile is None else [tile.scaled(8).crop(h[item : item + 1]) for h in hints]
            )
            copies = [n.copy().set_cond_hint(h, 0.7) for n, h in zip(networks, cut, strict=True)]
            return controlled(*copies)

        model = tiled(host.condition_on_lq(loaded[0], lq_latent), SIZE, overlap=0.0, batch=3)
        noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(9))
        blended = run(model, noise.repeat(items, 1, 1, 1), chain())
        (tile, *_) = tile_grid(*SIZE, 8, 0)  # the first is covered by no other
        for item in range(items):
            cropped = host.condition_on_lq(loaded[0], tile.crop(lq_latent[item : item + 1]))
            alone = run(cropped, tile.crop(noise), chain(tile, item))
            plain = run(cropped, tile.crop(noise), prompt(1))
            assert relative_l2(tile.crop(blended[item : item + 1]), alone) < 1e-5
            assert relative_l2(alone, plain) > 1e-2

    def test_originals_stay_as_they_are(self, model) -> None:
        first, second = (tiny_controlnet(k).set_cond_hint(hint((70, 100), k)) for k in (1, 2))
        positive = controlled(first, second)
        before = [copy.copy(vars(c)) for c in (first, second)]
        sample(tiled(model, SIZE), (1, 4, *SIZE), positive=positive, steps=1)
        for control, state in zip((first, second), before, strict=True):
            now = vars(control)
            changed = [name for name in state if now[name] is not state[name]]
            # what the host prepares for a sampling and cleans up
            assert set(changed) <= {"model_sampling_current", "timestep_range"}, changed

    def test_conditions_that_share_a_control_object_still_do(self, model) -> None:
        control = tiny_controlnet(1).set_cond_hint(hint(PIXELS, 1))
        recording, forwards = record_forwards(tiled(model, SIZE, batch=4))
        positive, negative = controlled(control), controlled(control, seed=2)
        sample(recording, (1, 4, *SIZE), positive=positive, negative=negative, steps=1)
        assert [f.x.shape[0] for f in forwards] == [8, 8, 8]

    def test_restore_keeps_them_shared_and_leaves_them_alone(self, loaded) -> None:
        control = tiny_controlnet(1).set_cond_hint(hint((70, 90), 1))
        original = control.cond_hint_original
        model, forwards = record_forwards(loaded[0])
        settings = {"steps": 1, "cfg": 2.0, "tile_size": 32, "tile_batch": 4, "color_fix": "none"}
        pixels = image((70, 90))
        prompts = {"positive": controlled(control), "negative": controlled(control, seed=2)}
        with_control = host.restore(model, loaded[2], pixels, **settings, **prompts)
        assert {f.x.shape[0] for f in forwards} == {8}
        assert control.cond_hint_original is original and control.cond_hint is None
        prompts = {"positive": prompt(1), "negative": prompt(2)}
        assert (
            relative_l2(with_control, host.restore(*loaded[::2], pixels, **settings, **prompts))
            > 1e-3
        )

    def test_a_t2i_adapter(self, loaded) -> None:
        torch.manual_seed(3)
        network = comfy.t2i_adapter.adapter.Adapter(
            channels=[32, 64], nums_rb=1, cin=3 * 64, ksize=1, sk=True, use_conv=False, xl=False
        )
        adapter = comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact", torch.device("cpu"))
        picture = hint(PIXELS, 5)
        model = tiled(host.condition_on_lq(loaded[0], latents(1, SIZE, seed=7)), SIZE, batch=3)
        recording, forwards = record_forwards(model)
        positive = controlled(adapter.set_cond_hint(picture))
        sample(recording, (1, 4, *SIZE), 1.0, positive=positive, steps=1)
        features = iter(TILES)
        for forward in forwards:
            crops = torch.cat([next(features).scaled(8).crop(picture) for _ in forward.x])
            got = next(c for c in forward.control["input"] if c is not None)
            wanted = next(c for c in network(crops)["input"] if c is not None)
            torch.testing.assert_close(got, wanted)
        assert adapter.control_input is None


def run(model: Any, noise: Tensor, positive: list[Any]) -> Tensor:
    return comfy.sample.sample(
        model,
        noise,
        1,
        1.0,
        "euler",
        "normal",
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )


class OtherControl(comfy.controlnet.ControlBase):
    """As another custom node may bring it."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return None

    def copy(self):
        other = OtherControl()
        self.copy_to(other)
        return other


class TestRefusals:
    def refused(self) -> list[tuple[list[Any], str]]:
        other = OtherControl().set_cond_hint(hint((64, 64), 1))
        core = tiny_controlnet(1).set_cond_hint(hint((64, 64), 1))
        name = f"{OtherControl.__module__}.OtherControl of another custom node cannot be cut"
        gligen = ("position", None, [])
        return [
            (controlled(other), name),
            (controlled(other, core), name),
            (prompt(1, gligen=gligen), "GLIGEN places things in the whole picture"),
        ]

    def test_what_cannot_be_cut_is_refused_before_the_start(self, loaded) -> None:
        model, forwards = record_forwards(loaded[0])
        for positive, sentence in self.refused():
            with pytest.raises(PFStorerError, match=sentence):
                host.restore(model, loaded[2], image(), steps=1, tile_size=32, positive=positive)
            check_conditioning(positive, 1)
        assert not forwards

    def test_one_tile_needs_no_cutting(self, loaded) -> None:
        positive = controlled(OtherControl().set_cond_hint(hint((64, 64), 1)))
        out = host.restore(*loaded[::2], image(), steps=1, positive=positive)
        expected = host.restore(*loaded[::2], image(), steps=1, positive=prompt(1))
        assert torch.equal(out, expected)

    def test_many_pictures_of_one_tile_need_no_cutting(self, loaded) -> None:
        positive = controlled(OtherControl().set_cond_hint(hint((64, 64), 1)))
        pixels = image(batch=3)
        out = host.restore(*loaded[::2], pixels, steps=1, tile_batch=2, positive=positive)
        expected = host.restore(*loaded[::2], pixels, steps=1, positive=prompt(1))
        assert relative_l2(out, expected) < 1e-5
