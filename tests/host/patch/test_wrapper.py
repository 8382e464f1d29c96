"""SFT in ComfyUI's UNet as a MODEL, against the bare UNet that the golden vectors prove."""

import dataclasses
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP
from golden_weights import relative_l2, rounding_limit
from tiny_models import latents, prompt, write_bundled

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY
from pfstorer_core.host.load import bundled
from pfstorer_core.host.patch import ahead, lq
from pfstorer_core.host.patch.bare_unet import restorer_options
from pfstorer_core.host.patch.handlers import FORWARD, HANDLERS
from pfstorer_core.host.patch.model import patch_model, set_lq_latent

KEY = "test"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled(tmp_path_factory.mktemp("restorers") / "tiny.safetensors")


@pytest.fixture
def loaded(path: Path):
    return host.load_base_restorer(path)


@pytest.fixture
def model(loaded) -> Any:
    return loaded[0]


def sample(model: Any, batch: int = 1, cfg: float = 3.0, **settings: Any) -> torch.Tensor:
    size = settings.pop("size", (16, 16))
    defaults = {"sampler_name": "euler", "scheduler": "normal", "steps": 2, "seed": 1}
    settings = {**defaults, "positive": prompt(1), "negative": prompt(2), **settings}
    steps = settings.pop("steps")
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, settings["seed"])
    return comfy.sample.sample(
        model, noise, steps, cfg=cfg, latent_image=latent, disable_pbar=True, **settings
    )


@dataclasses.dataclass
class Forward:
    x: torch.Tensor
    timesteps: torch.Tensor
    context: torch.Tensor
    out: torch.Tensor


def record_forwards(model: Any) -> tuple[Any, list[Forward]]:
    """Returns a clone that notes what goes into the UNet and what comes out."""
    forwards: list[Forward] = []

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        out = executor(x, timesteps, context, *args, **kwargs)
        forwards.append(Forward(x, timesteps, context, out))
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    return model, forwards


def restorer_of(model: Any) -> Any:
    return model.get_additional_models_with_key(RESTORER_KEY)[0].model


def count_encodings(model: Any) -> list[int]:
    """Returns a list that gets the batch size of each run of the encoder."""
    batches: list[int] = []
    encoder = restorer_of(model).encoder
    encoder.register_forward_hook(lambda module, args, out: batches.append(args[0].shape[0]))
    return batches


def refuse_batches(model: Any) -> Any:
    """Returns a clone that runs the conditions one by one, as when memory is short."""
    model = model.clone()

    def one_by_one(executor, model, conds, x_in, timestep, options):
        model.memory_required = lambda *_, **__: float("inf")
        try:
            return executor(model, conds, x_in, timestep, options)
        finally:
            del model.memory_required

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, one_by_one)
    return model


@pytest.mark.parametrize("split", [False, True])
def test_a_models_forwards_equal_the_bare_unets(model, split: bool) -> None:
    lq_latent = latents(2, seed=3)
    conditioned = host.condition_on_lq(model, lq_latent)
    recording, forwards = record_forwards(refuse_batches(conditioned) if split else conditioned)
    sample(recording, batch=2)
    assert [f.x.shape[0] for f in forwards] == ([2, 2, 2, 2] if split else [4, 4])

    unet = model.model.diffusion_model
    scaled = model.get_model_object("latent_format").process_in(lq_latent)
    options = restorer_options(unet, restorer_of(model), scaled)
    for forward in forwards:
        with torch.inference_mode():
            expected = unet(
                forward.x, forward.timesteps, forward.context, transformer_options=options
            )
        torch.testing.assert_close(forward.out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_encoder_runs_once_per_step(model, cfg: float, split: bool) -> None:
    conditioned = host.condition_on_lq(model, latents(2))
    batches = count_encodings(model)
    sample(refuse_batches(conditioned) if split else conditioned, batch=2, cfg=cfg, steps=3)
    assert batches == ([2, 2, 2] if on_cpu(model) else [6])


def on_cpu(model: Any) -> bool:
    return mm.is_device_cpu(model.load_device)


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    """Features of several steps are computed at once."""
    monkeypatch.setattr(ahead, "steps_at_once", lambda device: 4)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_on_a_gpu_the_encoder_runs_once_for_several_steps(
    model, as_on_a_gpu, cfg: float, split: bool
) -> None:
    conditioned = host.condition_on_lq(model, latents(2))
    batches = count_encodings(model)
    sample(refuse_batches(conditioned) if split else conditioned, batch=2, cfg=cfg, steps=7)
    assert batches == [2 * 4, 2 * 3]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde"])
def test_what_is_encoded_ahead_is_what_is_encoded_alone(
    model, as_on_a_gpu, monkeypatch, sampler: str
) -> None:
    """Samplers may evaluate twice at a noise level, or between two of the schedule's."""
    conditioned = host.condition_on_lq(model, latents(2))
    together = sample(conditioned, batch=2, steps=6, sampler_name=sampler)
    monkeypatch.setattr(ahead, "steps_at_once", lambda device: 1)
    batches = count_encodings(model)
    alone = sample(conditioned, batch=2, steps=6, sampler_name=sampler)
    assert relative_l2(together, alone) < 1e-5
    assert set(batches) == {2} and len(batches) >= 6


def test_large_latents_are_encoded_one_by_one(model, as_on_a_gpu, monkeypatch) -> None:
    monkeypatch.setattr(ahead, "_ENCODED", 2 * 16 * 16)
    conditioned = host.condition_on_lq(model, latents(2))
    batches = count_encodings(model)
    sample(conditioned, batch=2, steps=3)
    assert batches == [2, 2, 2]


def test_splitting_the_conditions_changes_nothing(model) -> None:
    conditioned = host.condition_on_lq(model, latents())
    together, apart = sample(conditioned), sample(refuse_batches(conditioned))
    assert relative_l2(apart, together) < 1e-5


def test_the_lq_latent_matters(model) -> None:
    results = [sample(host.condition_on_lq(model, latents(seed=seed))) for seed in (1, 2)]
    assert (results[0] - results[1]).abs().mean() > 0.01


def test_a_batch_equals_its_items(model) -> None:
    lq_latents = latents(3)
    batch = sample(host.condition_on_lq(model, lq_latents), batch=3, cfg=1.0)
    noise = comfy.sample.prepare_noise(torch.zeros(3, 4, 16, 16), 1)
    for item in range(3):
        conditioned = host.condition_on_lq(model, lq_latents[item : item + 1])
        alone = comfy.sample.sample(
            conditioned,
            noise[item : item + 1],
            2,
            1.0,
            "euler",
            "normal",
            prompt(1),
            prompt(2),
            torch.zeros(1, 4, 16, 16),
            disable_pbar=True,
            seed=1,
        )
        assert relative_l2(batch[item : item + 1], alone) < 1e-5


def test_a_batch_of_another_size_has_one_lq_latent_or_is_refused(model) -> None:
    a = latents(1)
    four = sample(host.condition_on_lq(model, a), batch=4)
    repeated = sample(host.condition_on_lq(model, torch.cat([a, a, a, a])), batch=4)
    torch.testing.assert_close(four, repeated)
    for batch in (1, 4):
        with pytest.raises(PFStorerError, match="and which belong together is not to be seen"):
            sample(host.condition_on_lq(model, latents(2)), batch=batch)


@pytest.mark.parametrize("size", [(9, 13), (16, 24), (5, 5)])
def test_odd_and_oblong_latents(model, size: tuple[int, int]) -> None:
    out = sample(host.condition_on_lq(model, latents(size=size)), size=size)
    assert out.shape == (1, 4, *size)
    assert out.isfinite().all()


def test_a_condition_with_an_area_sees_its_part_of_the_lq_latent(model) -> None:
    lq_latent = latents(seed=5)
    conditioned = host.condition_on_lq(model, lq_latent)
    recording, forwards = record_forwards(conditioned)
    sample(recording, cfg=1.0, positive=prompt(1, area=(8, 8, 4, 2)), steps=1)
    (forward,) = forwards
    assert forward.x.shape[2:] == (8, 8)
    scaled = model.get_model_object("latent_format").process_in(lq_latent)
    options = restorer_options(
        model.model.diffusion_model, restorer_of(model), scaled[:, :, 4:12, 2:10]
    )
    with torch.inference_mode():
        expected = model.model.diffusion_model(
            forward.x, forward.timesteps, forward.context, transformer_options=options
        )
    torch.testing.assert_close(forward.out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_single(path: Path, model, dtype: torch.dtype) -> None:
    recording, single = record_forwards(host.condition_on_lq(model, latents()))
    sample(recording)
    half_model, _, _ = host.load_base_restorer(path)
    half_model.model.diffusion_model.to(dtype)
    half_model.model.diffusion_model.dtype = dtype
    restorer_of(half_model).to(dtype)
    recording, half = record_forwards(host.condition_on_lq(half_model, latents()))
    sample(recording)
    assert {f.x.dtype for f in half} == {f.out.dtype for f in half} == {dtype}
    networks = half_model.model.diffusion_model, restorer_of(half_model)
    assert relative_l2(half[0].out, single[0].out) < rounding_limit(dtype, *networks)


def test_a_model_cast_by_the_host_computes_in_its_type(model) -> None:
    recording, single = record_forwards(host.condition_on_lq(model, latents()))
    sample(recording)
    cast = model.clone()
    cast.set_model_compute_dtype(torch.bfloat16)
    recording, half = record_forwards(host.condition_on_lq(cast, latents()))
    sample(recording)
    assert {f.x.dtype for f in half} == {torch.bfloat16}
    networks = cast.model.diffusion_model, restorer_of(cast)
    assert relative_l2(half[0].out, single[0].out) < rounding_limit(torch.bfloat16, *networks)


def test_weights_left_on_the_offload_device_change_nothing(model) -> None:
    conditioned = host.condition_on_lq(model, latents())
    expected = sample(conditioned)
    mm.unload_all_models()
    parts = [conditioned, *conditioned.get_additional_models()]
    budget = 200_000  # bytes: the UNet has 3.8 MB, the restorer 1.9 MB
    conditioned = conditioned.clone()

    def load_in_part(executor, model, *args, **kwargs):
        out = executor(model, *args, **kwargs)
        for part in (model, *model.get_additional_models()):
            part.partially_unload(part.offload_device, part.model_size() - budget)
            part.model.model_lowvram = True
            assert part.loaded_size() < part.model_size()
        # a GPU keeps a buffer free for what it fetches, which is more than a network this small
        assert not mm.is_device_cpu(model.load_device) or all(
            part.loaded_size() for part in (model, *model.get_additional_models())
        )
        return out

    conditioned.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, load_in_part)
    torch.testing.assert_close(sample(conditioned), expected, rtol=1e-5, atol=1e-5)
    mm.unload_all_models()
    assert len(parts) == 2


def test_a_lora_on_the_same_model_works_and_leaves_no_trace(loaded) -> None:
    model, clip, _ = loaded
    expected = sample(host.condition_on_lq(model, latents()))
    layer = "input_blocks.1.0.in_layers.2"  # in a block that carries SFT
    weight = model.model.diffusion_model.get_submodule(layer).weight
    torch.manual_seed(0)
    lora = {
        f"diffusion_model.{layer}.lora_down.weight": torch.randn(2, weight[0].numel()),
        f"diffusion_model.{layer}.lora_up.weight": torch.randn(weight.shape[0], 2),
    }
    with_lora, with_lora_clip = comfy.sd.load_lora_for_models(model, clip, lora, 0.5, 0.5)
    assert with_lora.patches, "the LoRA fits the UNet"
    changed = sample(host.condition_on_lq(with_lora, latents()))
    assert (changed - expected).abs().mean() > 1e-3
    assert with_lora_clip.encode_from_tokens(with_lora_clip.tokenize("x")).shape[0] == 1
    torch.testing.assert_close(sample(host.condition_on_lq(model, latents())), expected)
    # The other order: a LoRA on a MODEL that has its LQ latent already.
    late, _ = comfy.sd.load_lora_for_models(
        host.condition_on_lq(model, latents()), None, lora, 0.5, 0
    )
    torch.testing.assert_close(sample(late), changed)


def test_law_2_branches_do_not_touch_each_other_or_their_source(model) -> None:
    options = repr(model.model_options), repr(model.wrappers), repr(model.attachments)
    a = host.condition_on_lq(model, latents(seed=1))
    b = host.condition_on_lq(model, latents(seed=2))
    first, second = sample(a), sample(b)
    torch.testing.assert_close(sample(a), first, rtol=0, atol=0)
    torch.testing.assert_close(sample(b), second, rtol=0, atol=0)
    # Conditioning again replaces the latent instead of adding one.
    torch.testing.assert_close(
        sample(host.condition_on_lq(a, latents(seed=2))), second, rtol=0, atol=0
    )
    assert options == (repr(model.model_options), repr(model.wrappers), repr(model.attachments))


def test_nothing_of_a_run_outlives_it(model) -> None:
    conditioned = host.condition_on_lq(model, latents())
    recording, forwards = record_forwards(conditioned)
    seen: list[Any] = []
    recording.add_wrapper_with_key(
        WrappersMP.CALC_COND_BATCH,
        "zz-inner",
        lambda executor, *args: (
            seen.append(args[-1]["transformer_options"][lq.STEP]) or executor(*args)
        ),
    )
    sample(recording, steps=2)
    assert len(seen) == 2 and seen[0] is not seen[1], "each step has features of its own"
    assert lq.STEP not in recording.model_options["transformer_options"]
    assert FORWARD not in recording.model_options["transformer_options"]
    assert forwards


def test_law_6_a_restorer_without_an_lq_image_fails(model) -> None:
    with pytest.raises(PFStorerError, match="without an LQ image; put 'Condition on LQ Image'"):
        sample(model)


def test_a_latent_of_another_size_is_refused(model) -> None:
    conditioned = host.condition_on_lq(model, latents(size=(16, 24)))
    with pytest.raises(PFStorerError, match=r"latent is 16 x 16 .* LQ image of 24 x 16"):
        sample(conditioned)


def other_packs_handler(layer, x, emb, *_):
    return layer(x, emb)


def test_another_packs_handler_that_takes_the_blocks_is_named(loaded) -> None:
    raw, _, _ = bundled.load_bundled(loaded_path(loaded))
    raw.set_model_patch((ResBlock, other_packs_handler), "forward_timestep_embed_patch")
    restorer = restorer_of(loaded[0])
    patched = set_lq_latent(patch_model(raw, restorer), latents())
    with pytest.raises(PFStorerError, match=r"other_packs_handler took over 8 of them"):
        sample(patched)


def loaded_path(loaded) -> Path:
    return loaded[0].cached_patcher_init[1][0]


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_core_easycache_may_skip_steps(model, order: str) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode

    def cached(model: Any) -> Any:
        return EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0]

    def conditioned(model: Any) -> Any:
        return host.condition_on_lq(model, latents())

    # In either order ours is the outer wrapper of the UNet; re-added, it becomes the inner one.
    both = cached(conditioned(model))
    if order == "outside":
        (ours,) = both.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
        both.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
        both.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY, ours)
    runs: list[int] = []
    unet = model.model.diffusion_model
    handle = unet.out.register_forward_hook(lambda *_: runs.append(1))
    out = sample(both, steps=10, cfg=1.0)
    handle.remove()
    assert out.isfinite().all()
    assert 1 <= len(runs) < 10, "some steps were skipped"


def test_patching_twice_registers_the_handler_once(model) -> None:
    twice = patch_model(model, restorer_of(model))
    handlers = twice.model_options["transformer_options"]["patches"]
    assert handlers["forward_timestep_embed_patch"] == list(HANDLERS)
    assert len(twice.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)) == 1
