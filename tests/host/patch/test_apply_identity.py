"""Identity adapters applied to a restorer's MODEL, through ComfyUI's own samplers."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from golden_weights import relative_l2
from personalized_sampling import record_forwards, sample
from tiny_models import image, latents, prompt, random_adapter, untrained_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.load import bundled
from pfstorer_core.host.patch.applied import IDENTITY_KEY
from pfstorer_core.host.patch.bare_unet import restorer_options
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import write_safetensors


def restore(loaded: Any, adapters: list[Any], pixels: Tensor, **settings: Any) -> Tensor:
    """Restores without colour fix, with (adapter, settings of `apply_identity`) each."""
    model = loaded[0]
    for adapter, options in adapters:
        model = host.apply_identity(model, adapter, **options)
    return host.restore(model, loaded[2], pixels, steps=2, color_fix="none", **settings)


def hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TestLaw1:
    """Nothing to add: the base bit for bit."""

    @pytest.mark.parametrize("cfg", [1.0, 3.0])
    def test_an_adapter_changes_the_result(self, model, ada, cfg: float) -> None:
        base = sample(model, cfg=cfg)
        assert relative_l2(sample(host.apply_identity(model, ada), cfg=cfg), base) > 0.02

    @pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "uni_pc"])
    def test_gamma_zero(self, model, ada, sampler_name: str) -> None:
        applied = host.apply_identity(model, ada, gamma=0.0)
        assert applied is not model
        expected = sample(model, sampler_name=sampler_name)
        assert torch.equal(sample(applied, sampler_name=sampler_name), expected)

    @pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "uni_pc"])
    def test_a_mask_of_zeros(self, model, ada, sampler_name: str) -> None:
        applied = host.apply_identity(model, ada, mask=torch.zeros(1, 64, 64))
        expected = sample(model, sampler_name=sampler_name)
        assert torch.equal(sample(applied, sampler_name=sampler_name), expected)

    def test_an_untrained_adapter(self, model) -> None:
        fresh = untrained_adapter(model)
        assert torch.equal(sample(host.apply_identity(model, fresh)), sample(model))
        referred = host.apply_identity(model, fresh, references=latents(2, seed=3))
        assert torch.equal(sample(referred), sample(model))

    @pytest.mark.parametrize("shape", [(64, 64), (16, 16), (7, 9), (1, 333, 500)])
    def test_a_mask_of_ones_is_no_mask(self, model, ada, shape: tuple[int, ...]) -> None:
        masked = host.apply_identity(model, ada, mask=torch.ones(shape))
        assert torch.equal(sample(masked), sample(host.apply_identity(model, ada)))

    @pytest.mark.parametrize("size", [(64, 64), (37, 51)])
    def test_all_of_it_in_restore(self, loaded, ada, size: tuple[int, int]) -> None:
        pixels = image(size)
        base = restore(loaded, [], pixels)
        for nothing in (
            (ada, {"gamma": 0.0}),
            (ada, {"mask": torch.zeros(1, *size)}),
            (untrained_adapter(loaded[0]), {}),
        ):
            assert torch.equal(restore(loaded, [nothing], pixels), base)
        plain = restore(loaded, [(ada, {})], pixels)
        assert relative_l2(plain, base) > 0.005
        for shape in ((1, *size), (1, 20, 30)):
            masked = restore(loaded, [(ada, {"mask": torch.ones(shape)})], pixels)
            assert torch.equal(masked, plain)
        # an absent person takes no share of the place either
        absent = (random_adapter(loaded[0], 9), {"mask": torch.zeros(1, *size)})
        assert torch.equal(restore(loaded, [(ada, {}), absent], pixels), plain)
        assert torch.equal(restore(loaded, [absent, (ada, {})], pixels), plain)

    def test_gamma_is_a_dial(self, model, ada) -> None:
        base = sample(model, steps=1, cfg=1.0)
        far = [
            relative_l2(sample(host.apply_identity(model, ada, gamma=g), steps=1, cfg=1.0), base)
            for g in (0.1, 0.5, 1.0, 2.0)
        ]
        assert 0 < far[0] < far[1] < far[2] < far[3]


class TestLaw2:
    """What is given stays as it is; branches do not meet."""

    def test_the_model_and_the_adapter_stay(self, model, ada) -> None:
        def state() -> tuple[str, ...]:
            return (
                repr(model.model_options),
                repr(model.wrappers),
                repr(model.attachments),
                repr(model.get_additional_models()),
                hash_of(model.model),
                hash_of(ada),
            )

        before, expected = state(), sample(model)
        applied = host.apply_identity(model, ada, mask=torch.ones(1, 8, 8), references=latents())
        sample(applied)
        assert state() == before
        assert torch.equal(sample(model), expected)

    def test_two_branches_do_not_touch_each_other(self, model, ada, bob) -> None:
        a, b = host.apply_identity(model, ada), host.apply_identity(model, bob, gamma=1.5)
        first, second = sample(a), sample(b)
        assert relative_l2(first, second) > 0.01
        assert torch.equal(sample(a), first)
        assert torch.equal(sample(b), second)
        host.apply_identity(a, bob)
        assert torch.equal(sample(a), first), "chaining on leaves the first as it is"

    def test_the_adapter_may_change_or_go_after_it_was_applied(self, model) -> None:
        adapter = random_adapter(model, 3)
        applied = host.apply_identity(model, adapter)
        expected = sample(applied)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.zero_()
        assert torch.equal(sample(applied), expected)

    def test_the_adapters_are_loaded_by_the_memory_manager(self, model, ada, bob) -> None:
        applied = host.apply_identity(host.apply_identity(model, ada), bob)
        patchers = applied.get_additional_models_with_key(IDENTITY_KEY)
        assert len(patchers) == 2
        assert all(p.model_size() > 0 and p.load_device == model.load_device for p in patchers)
        assert len(applied.get_additional_models()) == 3, "the restorer and both adapters"


def test_conditioning_before_or_after_is_the_same(loaded, ada) -> None:
    lq, mask = latents(seed=7), torch.rand(1, 16, 16)
    after = host.apply_identity(host.condition_on_lq(loaded[0], lq), ada, mask=mask)
    before = host.condition_on_lq(host.apply_identity(loaded[0], ada, mask=mask), lq)
    assert torch.equal(sample(after), sample(before))


@pytest.mark.parametrize("masked", [False, True])
def test_law_3_a_batch_equals_its_items(loaded, ada, masked: bool) -> None:
    lq = latents(3, seed=5)
    masks = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) if masked else None
    references = latents(2, seed=8)
    noise = comfy.sample.prepare_noise(lq, 1)

    def run(part: slice) -> Tensor:
        model = host.condition_on_lq(loaded[0], lq[part])
        mask = None if masks is None else masks[part]
        model = host.apply_identity(model, ada, mask=mask, references=references)
        return sample(model, batch=len(lq[part]), noise=noise[part])

    batch = run(slice(0, 3))
    for item in range(3):
        alone = run(slice(item, item + 1))
        assert relative_l2(batch[item : item + 1], alone) < 1e-5


def test_each_half_of_a_guided_batch_gets_its_own_text(model, ada) -> None:
    """The blocks attend to the text: a forward of both prompts equals one forward of each."""
    applied = host.apply_identity(model, ada)
    recording, forwards = record_forwards(applied)
    sample(recording, cfg=3.0, steps=1)
    (both,) = forwards
    assert both.x.shape[0] == 2 and not torch.equal(both.context[0], both.context[1])
    (wrapper,) = applied.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    unet = model.model.diffusion_model
    lq = model.get_model_object("latent_format").process_in(latents(seed=7))
    options = restorer_options(unet, wrapper.restorer, lq, wrapper.identities)
    with torch.inference_mode():
        for k in range(2):
            part = slice(k, k + 1)
            alone = unet(
                both.x[part], both.timesteps[part], both.context[part], transformer_options=options
            )
            torch.testing.assert_close(both.out[part], alone, rtol=1e-4, atol=1e-5)


def test_a_condition_with_an_area_sees_its_part_of_the_mask(model, ada) -> None:
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:8, 2:6] = 1.0
    mask[:, 8:12, 6:10] = 0.25
    applied = host.apply_identity(model, ada, mask=mask)
    recording, forwards = record_forwards(applied)
    sample(recording, cfg=1.0, positive=prompt(1, area=(8, 8, 4, 2)), steps=1)
    (forward,) = forwards
    assert forward.x.shape[2:] == (8, 8)
    (seen,) = (v for k, v in forward.conditions.items() if k.startswith("pfstorer_mask_"))
    assert torch.equal(seen.cpu(), mask[:, None, 4:12, 2:10])
    # An area in which the person is not is the base's.
    away = host.apply_identity(model, ada, mask=mask)
    recording, forwards = record_forwards(away)
    settings = {"cfg": 1.0, "positive": prompt(1, area=(4, 16, 12, 0)), "steps": 1}
    sample(recording, **settings)
    recording, base = record_forwards(model)
    sample(recording, **settings)
    assert torch.equal(forwards[0].out, base[0].out)


def test_masks_of_padded_pictures_keep_their_place(loaded, ada) -> None:
    """A picture of odd size is padded by its mirror image, and so is the mask."""
    small, mask = image((60, 52)), torch.zeros(1, 60, 52)
    mask[:, 20:, 16:40] = 1.0
    rows, columns = [*range(60), 58, 57, 56, 55], [*range(52), 50, 49, 48, 47]
    whole = restore(
        loaded, [(ada, {"mask": mask[:, rows][:, :, columns]})], small[:, rows][:, :, columns]
    )
    found = restore(loaded, [(ada, {"mask": mask})], small)
    torch.testing.assert_close(found, whole[:, :60, :52], rtol=1e-4, atol=1e-5)
    # A mask of another resolution is that of the picture scaled.
    doubled = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    scaled = restore(loaded, [(ada, {"mask": doubled})], small)
    assert relative_l2(scaled, found) < 0.01
    assert relative_l2(restore(loaded, [(ada, {})], small), found) > relative_l2(scaled, found)


class TestWindow:
    """Start and end are shares of the sampling."""

    def outs(self, model: Any, steps: int = 4) -> tuple[list[float], list[Tensor]]:
        recording, forwards = record_forwards(model)
        sample(recording, steps=steps, cfg=1.0)
        return [float(f.timesteps[0]) for f in forwards], forwards

    @pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.4, 1.0), (0.3, 0.7)])
    def test_the_identity_acts_within_and_only_there(
        self, loaded, model, ada, start: float, end: float
    ) -> None:
        applied = host.apply_identity(model, ada, start=start, end=end)
        (wrapper,) = applied.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
        timesteps, forwards = self.outs(applied)
        unet = model.model.diffusion_model
        lq = model.get_model_object("latent_format").process_in(latents(seed=7))
        options = restorer_options(unet, wrapper.restorer, lq)
        acted = []
        for forward in forwards:
            with torch.inference_mode():
                base = unet(
                    forward.x, forward.timesteps, forward.context, transformer_options=options
                )
            acted.append(not torch.allclose(forward.out, base, rtol=1e-4, atol=1e-5))
        share = [1 - t / 999 for t in timesteps]
        assert acted == [start <= s <= end for s in share]
        assert True in acted and False in acted

    def test_the_whole_window_is_no_window(self, model, ada) -> None:
        whole = host.apply_identity(model, ada, start=0.0, end=1.0)
        assert torch.equal(sample(whole), sample(host.apply_identity(model, ada)))

    def test_a_window_between_two_steps_is_the_base(self, model, ada) -> None:
        applied = host.apply_identity(model, ada, start=0.5001, end=0.5002)
        assert torch.equal(sample(applied, steps=2), sample(model, steps=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_type_of_the_features(loaded, model, ada, dtype) -> None:
    """Law 1 under half precision too, where a promoted type would show."""
    half = model.clone()
    half.set_model_compute_dtype(dtype)
    base = sample(half)
    applied = host.apply_identity(half, ada, mask=torch.rand(1, 8, 8), references=latents(seed=3))
    recording, forwards = record_forwards(applied)
    changed = sample(recording)
    assert {f.x.dtype for f in forwards} == {f.out.dtype for f in forwards} == {dtype}
    assert relative_l2(changed, base) > 0.01
    assert torch.equal(sample(host.apply_identity(half, untrained_adapter(model))), base)
    assert torch.equal(sample(host.apply_identity(half, ada, mask=torch.zeros(8, 8))), base)
    masked = host.apply_identity(half, ada, mask=torch.ones(8, 8))
    assert torch.equal(sample(masked), sample(host.apply_identity(half, ada)))


class TestRefusals:
    @pytest.mark.parametrize("gamma", [-0.1, 2.1, float("nan")])
    def test_gamma(self, model, ada, gamma: float) -> None:
        with pytest.raises(PFStorerError, match=r"gamma is .*choose 0 \(the base\) to 2"):
            host.apply_identity(model, ada, gamma)

    @pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
    def test_the_window(self, model, ada, start: float, end: float) -> None:
        with pytest.raises(PFStorerError, match=f"act from {start} to {end} of the sampling"):
            host.apply_identity(model, ada, start=start, end=end)

    @pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8), (0, 8, 8)])
    def test_masks(self, model, ada, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match=r"mask has the shape .*expected \(batch, height"):
            host.apply_identity(model, ada, mask=torch.ones(shape))

    def test_a_model_without_restorer(self, loaded, ada) -> None:
        path: Path = loaded[0].cached_patcher_init[1][0]
        raw, _, _ = bundled.load_bundled(path)
        with pytest.raises(PFStorerError, match="has no restorer; connect the MODEL that 'Load"):
            host.apply_identity(raw, ada)

    def test_another_base_is_named_with_the_adapters(self, model, ada) -> None:
        info = dataclasses.replace(ada.info, base_name="studio", base_fingerprint="12345678" * 8)
        with pytest.raises(
            PFStorerError, match=r"'Ada' was trained on restorer 'studio' \(12345678\).*'tiny' \("
        ):
            host.apply_identity(model, IdentityAdapter.initialise(info))

    def test_another_checkpoint_is_said_so(self, model, ada) -> None:
        for change in ({"context_dim": 64}, {"site_channels": {"input_blocks.1.0": 32}}):
            info = dataclasses.replace(ada.info, **change)
            with pytest.raises(PFStorerError, match="another Stable Diffusion checkpoint"):
                host.apply_identity(model, IdentityAdapter.initialise(info))


def test_another_checkpoint_of_the_same_shape_is_refused(tmp_path: Path, ada) -> None:
    """The restorer alone does not make the base."""
    path = write_bundled(tmp_path / "same.safetensors")
    model = host.load_base_restorer(path)[0]
    known = dataclasses.replace(ada.info, unet_digest=base_of(model).unet_digests[0])
    other = IdentityAdapter(known)
    other.load_state_dict(ada.state_dict())
    host.apply_identity(model, other)
    weights, metadata = read_weights(path)
    changed = {key: x + 0.5 if key.endswith(".out.2.weight") else x for key, x in weights.items()}
    write_safetensors(tmp_path / "changed.safetensors", changed, metadata)
    with pytest.raises(PFStorerError, match="another Stable Diffusion checkpoint"):
        host.apply_identity(host.load_base_restorer(tmp_path / "changed.safetensors")[0], other)
