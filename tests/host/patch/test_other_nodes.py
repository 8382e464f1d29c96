"""ComfyUI's own nodes that change how a MODEL is evaluated, together with a restorer."""

import importlib
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from golden_weights import relative_l2
from tiled_sampling import sample, tiled
from tiny_models import image, latents, prompt, random_adapter, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.tiles.step_caches import StepCaches
from pfstorer_core.measures.metrics import psnr

SIZE = (32, 48)
SHAPE = (1, 4, *SIZE)


@pytest.fixture(scope="module")
def restoring(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A restorer's MODEL, conditioned on an LQ latent of `SIZE`."""
    path = write_bundled(tmp_path_factory.mktemp("others") / "tiny.safetensors")
    model = host.load_base_restorer(path)[0]
    mm.load_models_gpu([model])  # the first run's noise schedule is rounded where it lies before
    return host.condition_on_lq(model, latents(1, SIZE, seed=7))


def patched(module: str, node: str, model: Any, *settings: Any) -> Any:
    """What one of ComfyUI's nodes makes of a MODEL."""
    extension = importlib.import_module(f"comfy_extras.{module}")
    found = getattr(extension, f"{node}Node", None) or getattr(extension, node)
    return found.execute(model, *settings).args[0]


def cached(model: Any, threshold: float) -> Any:
    return patched("nodes_easycache", "EasyCache", model, threshold, 0.15, 0.95, False)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_step_cache_knows_one_tile_from_another(restoring, batch: int) -> None:
    plain = sample(tiled(restoring, SIZE, tile=16, batch=batch), SHAPE, steps=8)
    idle = sample(tiled(cached(restoring, 1e-9), SIZE, tile=16, batch=batch), SHAPE, steps=8)
    assert torch.equal(idle, plain), "a cache that never answers changes nothing"
    model = cached(restoring, 2.0)
    skipping = sample(tiled(model, SIZE, tile=16, batch=batch), SHAPE, steps=8)
    assert not torch.equal(skipping, plain), "it answers in the UNet's place"
    whole_plain = sample(restoring, SHAPE, steps=8)
    whole = sample(model, SHAPE, steps=8)
    assert relative_l2(skipping, plain) < 2 * relative_l2(whole, whole_plain) + 0.05


def test_own_copies_come_of_the_given_object() -> None:
    class Cache:
        def __init__(self) -> None:
            self.kept = 0
            self.skip_current_step = True

        def clone(self) -> None: ...

        def reset(self) -> None: ...

    given, caches = Cache(), StepCaches()
    options = {"cache": given, "sigmas": torch.ones(1), "wrappers": {}}
    first = caches.of("a", options)["cache"]
    assert set(caches.of("a", options)) == {"cache"} and not first.skip_current_step
    first.kept = 5
    assert caches.of("a", options)["cache"] is first
    assert caches.of("b", options)["cache"].kept == 0 and given.kept == 0
    caches.forget()
    assert caches.of("a", options)["cache"].kept == 0


@pytest.mark.parametrize("block", [1, 2])
def test_blocks_at_a_smaller_size(restoring, block: int) -> None:
    """Deep Shrink: the SFT features follow the size that other nodes give a block."""
    settings = (block, 2.0, 0.0, 0.5, True, "bicubic", "bicubic")
    model = patched("nodes_model_downscale", "PatchModelAddDownscale", restoring, *settings)
    plain, shrunk = sample(restoring, SHAPE, steps=4), sample(model, SHAPE, steps=4)
    assert shrunk.isfinite().all()
    assert 0 < relative_l2(shrunk, plain) < 1


def test_what_must_see_the_whole_picture_is_refused_in_tiles(tmp_path: Path) -> None:
    model, _, vae = host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))
    guided = patched("nodes_sag", "SelfAttentionGuidance", model, 0.5, 2.0)
    picture = image((64, 96))
    with pytest.raises(PFStorerError, match="'SelfAttentionGuidance' compares the picture"):
        host.restore(guided, vae, picture, steps=2, cfg=2.0, tile_size=32)
    assert host.restore(guided, vae, picture, steps=2, cfg=2.0, tile_size=128).isfinite().all()


def test_a_compiled_model_gives_what_the_plain_one_gives(tmp_path: Path) -> None:
    """ComfyUI's compile node never looks again at what lies in the transformer options."""
    model, _, vae = host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))
    ada, bob = random_adapter(model), random_adapter(model, seed=1, name="Bob")
    compiled = model.clone()
    set_torch_compile_wrapper(
        compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict}
    )
    torch.compiler.reset()
    left = torch.ones(1, 64, 64).triu()
    changes: list[tuple[list[tuple[Any, float, Any]], float, int, tuple[int, int]]] = [
        ([], 1.0, 1, (64, 64)),
        ([(ada, 1.0, None)], 1.0, 1, (64, 64)),
        ([(ada, 0.3, None)], 1.0, 1, (64, 64)),
        ([(bob, 1.0, None)], 1.0, 1, (64, 64)),
        ([(ada, 1.0, None)], 2.0, 1, (64, 64)),
        ([(ada, 1.0, None)], 1.0, 2, (64, 64)),
        ([(ada, 1.0, left)], 1.0, 2, (64, 64)),
        ([(ada, 1.0, 1 - left)], 1.0, 2, (64, 64)),
        ([(ada, 1.0, left), (bob, 0.5, 1 - left)], 1.0, 1, (64, 64)),
        ([(bob, 1.0, left), (ada, 0.5, 1 - left)], 2.0, 1, (64, 64)),
        ([], 2.0, 2, (64, 64)),
        ([], 1.0, 1, (48, 96)),
        ([(ada, 0.0, None)], 1.0, 1, (48, 96)),
        ([(ada, "auto", None)], 1.0, 3, (64, 64)),
    ]
    torch.manual_seed(0)
    for number, (identities, cfg, batch, (height, width)) in enumerate(changes * 2):
        picture = torch.rand(batch, height, width, 3)
        tile_size = 32 if number % 3 == 2 else 0
        results = []
        for given in (model, compiled):
            for adapter, gamma, mask in identities:
                given = host.apply_identity(given, adapter, gamma, mask)
            report = RestoreReport()
            settings = {"steps": 2, "cfg": cfg, "tile_size": tile_size, "report": report}
            results.append(host.restore(given, vae, picture, **settings))
        assert float(psnr(*(x.movedim(-1, 1) for x in results)).min()) > 90, number
        assert any("torch.compile" in line for line in report.lines)


def predictions(model: Any, conds: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """What a MODEL's UNet predicts in one step for each of several prompts."""
    found: list[Any] = []

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            asked = [self.conds[name] for name in sorted(self.conds)]
            options = model_options or {}
            out = comfy.samplers.calc_cond_batch(self.inner_model, asked, x, timestep, options)
            found.extend(out)
            return out[0]

    guider = Guider(model)
    guider.inner_set_conds({f"{k:02d}": cond for k, cond in enumerate(conds)})
    euler = comfy.samplers.sampler_object("euler")
    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, 1)
    guider.sample(noise, latent, euler, torch.tensor([3.0, 0.0]), disable_pbar=True, seed=1)
    return found


@pytest.mark.parametrize("batch", [1, 2])
def test_many_prompts_of_several_lengths_in_one_step(restoring, batch: int) -> None:
    """As guiders ask for: each prediction is that of its prompt alone."""
    adapter = random_adapter(restoring)
    model = host.apply_identity(restoring, adapter, mask=torch.rand(1, *SIZE))
    width = prompt(0)[0][0].shape[-1]
    lengths = [3, 6, 3, 77]
    conds = [[[torch.randn(1, n, width), {}]] for n in lengths]
    shape = (batch, *SHAPE[1:])
    together = predictions(model, conds, shape)
    alone = [predictions(model, [cond], shape)[0] for cond in conds]
    assert len(together) == len(conds)
    for one, other in zip(together, alone, strict=True):
        assert relative_l2(one, other) < 1e-5
    assert relative_l2(alone[0], alone[1]) > 1e-4


def test_perp_neg_of_equal_prompts_is_a_number_of_no_model(restoring) -> None:
    """It divides by how far the prompts are apart: so of ComfyUI's own, without a restorer."""
    plain = restoring.clone()
    plain.remove_wrappers_with_key("diffusion_model", RESTORER_KEY)
    for model in (restoring, plain):
        for prompts, finite in (((1, 1, 1), False), ((1, 2, 3), True)):
            guider = Guider_PerpNeg(model)
            guider.set_conds(*(prompt(seed) for seed in prompts))
            guider.set_cfg(2.0, 1.0)
            latent = torch.zeros(SHAPE)
            sampled = guider.sample(
                comfy.sample.prepare_noise(latent, 1),
                latent,
                comfy.samplers.sampler_object("euler"),
                torch.tensor([3.0, 0.0]),
                disable_pbar=True,
                seed=1,
            )
            assert bool(sampled.isfinite().all()) is finite


def test_a_node_that_cuts_batches_into_single_items(restoring) -> None:
    """Through the MODEL's function wrapper, with all that belongs to an item."""

    def one_by_one(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        c = given["c"]
        parts = []
        for k in range(len(given["input"])):
            item = {
                name: value[k : k + 1]
                if isinstance(value, torch.Tensor) and len(value) == len(given["input"])
                else value
                for name, value in c.items()
            }
            item["transformer_options"] = dict(c["transformer_options"])
            parts.append(
                apply_model(given["input"][k : k + 1], given["timestep"][k : k + 1], **item)
            )
        return torch.cat(parts)

    model = host.apply_identity(restoring, random_adapter(restoring), mask=torch.rand(1, *SIZE))
    cut = model.clone()
    cut.set_model_unet_function_wrapper(one_by_one)
    shape = (2, *SHAPE[1:])
    assert relative_l2(sample(cut, shape), sample(model, shape)) < 1e-5
