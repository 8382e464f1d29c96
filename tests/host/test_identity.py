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
from tiny_models import (
    UNET,
    image,
    latents,
    prompt,
    random_adapter,
    random_restorer,
    untrained_adapter,
    write_bundled,
)
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.adapter import AdapterInfo, IdentityAdapter
from pfstorer_core.encoder import EncoderConfig
from pfstorer_core.errors import PFStorerError
from pfstorer_core.files import read_weights, write_safetensors
from pfstorer_core.host import bundled, identities, patches
from pfstorer_core.host.identities import AppliedIdentity, additions
from pfstorer_core.host.loading import restoration
from pfstorer_core.host.sampling import encode_references
from pfstorer_core.host.sites import DIGESTED, find_identity_sites, unet_digests
from pfstorer_core.personalization import PersonalizationConfig

SIZE = (16, 16)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def model(loaded) -> Any:
    """A MODEL that restores one LQ latent."""
    return host.condition_on_lq(loaded[0], latents(seed=7))


@pytest.fixture(scope="module")
def ada(model) -> IdentityAdapter:
    return random_adapter(model, 1, "Ada")


@pytest.fixture(scope="module")
def bob(model) -> IdentityAdapter:
    return random_adapter(model, 2, "Bob")


def sample(model: Any, batch: int = 1, cfg: float = 3.0, **settings: Any) -> Tensor:
    size = settings.pop("size", SIZE)
    noise = settings.pop("noise", None)
    latent = torch.zeros(batch, 4, *size)
    if noise is None:
        noise = comfy.sample.prepare_noise(latent, 1)
    steps = settings.pop("steps", 2)
    defaults = {"sampler_name": "euler", "scheduler": "normal", "seed": 1}
    settings = {**defaults, "positive": prompt(1), "negative": prompt(2), **settings}
    return comfy.sample.sample(
        model, noise, steps, cfg=cfg, latent_image=latent, disable_pbar=True, **settings
    )


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


@dataclasses.dataclass
class Forward:
    """One run of the UNet, with the conditions that it was given."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    conditions: dict[str, Any]
    out: Tensor


def record_forwards(model: Any) -> tuple[Any, list[Forward]]:
    """Returns a clone that notes what goes into the UNet and what comes out."""
    forwards: list[Forward] = []

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        out = executor(x, timesteps, context, *args, **kwargs)
        forwards.append(Forward(x, timesteps, context, kwargs, out))
        return out

    model = model.clone()
    # re-added, ours is the inner one, which takes its conditions out
    (ours,) = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, patches.KEY)
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, patches.KEY)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, patches.KEY, ours)
    return model, forwards


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
        patchers = applied.get_additional_models_with_key(identities.IDENTITY_KEY)
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
    (wrapper,) = applied.get_wrappers(WrappersMP.DIFFUSION_MODEL, patches.KEY)
    unet = model.model.diffusion_model
    lq = model.get_model_object("latent_format").process_in(latents(seed=7))
    options = patches.restorer_options(unet, wrapper.restorer, lq, wrapper.identities)
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


def test_a_mask_acts_where_it_is(ada) -> None:
    """At each block's own resolution: nothing outside, the whole delta inside."""
    site = ada.sites[-1]
    channels = ada.info.site_channels[site]
    h = torch.randn(1, channels, 8, 8)
    context = torch.randn(1, 3, UNET["context_dim"])
    weight = torch.zeros(1, 1, 16, 16)
    weight[..., :8] = 1
    weight[..., 8:10] = 0.5
    delta = ada.block(site)(h, context)
    part = identities.Addition(ada.block(site), 1.5, weight, None)
    out = identities.add_identities(h, context, [part])
    assert torch.equal(out[..., 5:], h[..., 5:])
    torch.testing.assert_close(out[..., :4], (h + 1.5 * delta)[..., :4])
    torch.testing.assert_close(out[..., 4], (h + 0.75 * delta)[..., 4])
    assert identities.add_identities(h, context, []) is h


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


class TestSeveralPeople:
    """What `additions` collects from several identities."""

    SIGMA = torch.tensor([1.0])

    def collect(self, model: Any, masks: list[Tensor | None], **settings: Any) -> list[Any]:
        adapters = [random_adapter(model, k) for k in range(len(masks))]
        applied = [AppliedIdentity(a, strength=k + 1, **settings) for k, a in enumerate(adapters)]
        conditions = {
            f"{identities._MASK_COND}{k}": mask for k, mask in enumerate(masks) if mask is not None
        }
        found = additions(
            applied, model.model.diffusion_model, latents(2), {"sigmas": self.SIGMA}, conditions
        )
        assert not conditions, "the UNet takes no masks"
        if found:
            assert list(found) == list(adapters[0].sites)
        parts = next(iter(found.values()), [])
        assert all(
            [p.block for p in at] == [adapters[int(p.strength) - 1].block(site) for p in at]
            for site, at in found.items()
        )
        return parts

    @staticmethod
    def mask(*columns: float) -> Tensor:
        """(2, 1, 16, 16), of so many stripes."""
        return torch.tensor(columns).repeat_interleave(16 // len(columns)).expand(2, 1, 16, 16)

    def test_disjoint_masks_stay_as_they_are(self, model) -> None:
        a, b = self.collect(model, [self.mask(1.0, 0.0), self.mask(0.0, 0.5)])
        assert torch.equal(a.weight, self.mask(1.0, 0.0))
        assert torch.equal(b.weight, self.mask(0.0, 0.5))
        assert (a.strength, b.strength) == (1, 2)

    def test_overlapping_masks_share_the_place(self, model) -> None:
        masks = [self.mask(1.0, 1.0, 0.3, 0.0), self.mask(0.0, 1.0, 0.4, 0.5), self.mask(1.0, 0.0)]
        parts = self.collect(model, masks)
        total = sum(part.weight for part in parts)
        assert total.max() <= 1 + 1e-6
        torch.testing.assert_close(parts[0].weight, self.mask(0.5, 1 / 3, 0.3, 0.0))
        torch.testing.assert_close(parts[1].weight, self.mask(0.0, 1 / 3, 0.4, 0.5))
        torch.testing.assert_close(parts[2].weight, self.mask(0.5, 1 / 3, 0.0, 0.0))

    def test_without_masks_they_share_everything(self, model) -> None:
        parts = self.collect(model, [None, None])
        assert [part.weight.unique().item() for part in parts] == [0.5, 0.5]
        half, whole = self.collect(model, [self.mask(1.0, 0.0), None])
        torch.testing.assert_close(half.weight, self.mask(0.5, 0.0))
        torch.testing.assert_close(whole.weight, self.mask(0.5, 1.0))

    def test_one_alone_needs_no_weight(self, model) -> None:
        (part,) = self.collect(model, [None])
        assert part.weight is None
        (part,) = self.collect(model, [None, torch.zeros(2, 1, 16, 16)])
        assert part.weight is None and part.strength == 1

    def test_outside_of_its_sigmas_none_acts(self, model) -> None:
        assert self.collect(model, [None], sigmas=(0.9, 0.1)) == []
        assert len(self.collect(model, [None], sigmas=(1.1, 0.9))) == 1

    def test_the_order_does_not_matter(self, model, ada, bob) -> None:
        left, right = self.mask(1.0, 0.6)[:1, 0], self.mask(0.4, 1.0)[:1, 0]
        one = host.apply_identity(host.apply_identity(model, ada, mask=left), bob, mask=right)
        other = host.apply_identity(host.apply_identity(model, bob, mask=right), ada, mask=left)
        assert relative_l2(sample(one), sample(other)) < 1e-5
        assert relative_l2(sample(one), sample(host.apply_identity(model, ada, mask=left))) > 1e-3

    def test_the_same_person_twice_without_masks_is_that_person_once(self, model, ada) -> None:
        twice = host.apply_identity(host.apply_identity(model, ada), ada)
        assert relative_l2(sample(twice), sample(host.apply_identity(model, ada))) < 1e-5


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
        (wrapper,) = applied.get_wrappers(WrappersMP.DIFFUSION_MODEL, patches.KEY)
        timesteps, forwards = self.outs(applied)
        unet = model.model.diffusion_model
        lq = model.get_model_object("latent_format").process_in(latents(seed=7))
        options = patches.restorer_options(unet, wrapper.restorer, lq)
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


class TestReferences:
    @staticmethod
    def runs(applied: Any, **settings: Any) -> tuple[Tensor, list[int]]:
        """Returns the result and the batch of each run of the UNet."""
        batches: list[int] = []
        first = applied.model.diffusion_model.input_blocks[0][0]
        handle = first.register_forward_hook(lambda m, args, out: batches.append(len(args[0])))
        try:
            return sample(applied, **settings), batches
        finally:
            handle.remove()

    def test_they_change_the_result_and_each_counts(self, model, ada) -> None:
        results = [
            sample(host.apply_identity(model, ada, references=references))
            for references in (
                None,
                latents(seed=3),
                latents(seed=4),
                torch.cat([latents(seed=3), latents(seed=4)]),
                [latents(seed=3), latents(seed=4)],
                [latents(seed=3), latents(size=(9, 20), seed=4)],
            )
        ]
        for k, a in enumerate(results):
            for n, b in enumerate(results[:k]):
                same = {k, n} == {3, 4}
                assert (relative_l2(a, b) < 1e-5) is same, (k, n)

    @pytest.mark.parametrize("cfg", [1.0, 3.0])
    def test_their_features_are_computed_once_per_sampling(self, model, ada, cfg: float) -> None:
        halves = 2 if cfg > 1 else 1
        references = [latents(3, seed=3), latents(size=(9, 20), seed=4)]
        applied = host.apply_identity(model, ada, references=references)
        _, batches = self.runs(applied, cfg=cfg, steps=4)
        assert sorted(batches) == sorted([3, 1, *[halves] * 4])
        _, again = self.runs(applied, cfg=cfg, steps=4)
        assert again == batches, "and anew in the next"

    def test_nothing_of_them_outlives_the_sampling(self, model, ada) -> None:
        applied = host.apply_identity(model, ada, references=latents())
        before = repr(applied.model_options)
        sample(applied)
        assert repr(applied.model_options) == before

    def test_two_people_have_their_own(self, model, ada, bob) -> None:
        def both(first: int, second: int) -> Tensor:
            one = host.apply_identity(model, ada, references=latents(seed=first))
            return sample(host.apply_identity(one, bob, references=latents(seed=second)))

        assert relative_l2(both(3, 4), both(4, 3)) > 1e-4
        assert torch.equal(both(3, 4), both(3, 4))

    def test_the_features_are_those_of_the_bare_unet(self, model, ada) -> None:
        """At timestep 0 and without SFT: what the UNet's own layers give."""
        unet = model.model.diffusion_model
        device = next(unet.parameters()).device
        context = torch.randn(1, 3, UNET["context_dim"]).to(device)
        shown = latents(2, seed=3).to(device)
        expected: dict[str, Tensor] = {}
        handles = [
            unet.get_submodule(site).register_forward_hook(
                lambda m, args, out, site=site: expected.__setitem__(site, out)
            )
            for site in ada.sites
        ]
        with torch.inference_mode():
            unet(
                shown,
                torch.zeros(2, device=device),
                context.expand(2, -1, -1),
                transformer_options={},
            )
            direct = dict(expected)
            found = identities.reference_features(unet, ada.sites, shown, context)
        for handle in handles:
            handle.remove()
        assert set(found) == set(ada.sites)
        for site in ada.sites:
            torch.testing.assert_close(found[site], direct[site], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 8, 16, 16), (4, 16, 16), (0, 4, 16, 16)])
    def test_latents_of_another_kind_are_refused(self, model, ada, shape) -> None:
        with pytest.raises(PFStorerError, match="references' latent has the shape"):
            host.apply_identity(model, ada, references=torch.zeros(shape))


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


SD = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "legacy": False,
}
SD15 = {**SD, "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False}
SD21 = {**SD, "context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True}
# parameters of the adapter, in all
PARAMETERS = {"1.5": (SD15, 16_128_896), "2.1": (SD21, 17_515_904)}


@pytest.mark.parametrize("version", PARAMETERS)
def test_one_config_fits_stable_diffusion(version: str) -> None:
    config, parameters = PARAMETERS[version]
    unet = bundled.build_unet({**config, "model_channels": 320}, device="meta")
    sites = find_identity_sites(unet)
    assert len(sites) == 21
    assert list(sites)[:3] == ["input_blocks.1.1", "input_blocks.2.1", "input_blocks.4.1"]
    assert sites["input_blocks.11.0"] == 1280 and sites["middle_block.2"] == 1280
    assert list(sites.items())[-1] == ("output_blocks.11.1", 320)
    info = AdapterInfo("x", "y", "z", config["context_dim"], sites, PersonalizationConfig())
    adapter = IdentityAdapter(info, device="meta")
    found = sum(p.numel() for p in adapter.parameters())
    assert found == parameters
    assert 2 * found < 64 * 10**6, "bytes of the file in float16"


@pytest.mark.parametrize("config", [SD15, SD21], ids=["1.5", "2.1"])
def test_stable_diffusions_layout_runs(config: dict[str, Any]) -> None:
    """The same layers at a tenth of the width."""
    narrow = {**config, "model_channels": 32, "context_dim": 32, "num_head_channels": 32}
    narrow.pop("num_heads", None)
    torch.manual_seed(0)
    unet = bundled.build_unet(narrow)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    restorer = random_restorer(unet, EncoderConfig(4, 32, 32, 1, (8,), (1, 1, 1, 1), 4))
    sites = find_identity_sites(unet)
    assert len(sites) == 21
    adapter = IdentityAdapter.initialise(
        AdapterInfo("x", "y", "z", 32, sites, PersonalizationConfig())
    )
    with torch.no_grad():
        for site in sites:
            adapter.block(site).out.weight.normal_(std=0.05)
    identity = AppliedIdentity(
        adapter, references=(latents(seed=3),), reference_context=torch.randn(1, 3, 32)
    )
    context, lq = torch.randn(2, 3, 32), latents(2, seed=1)
    results = []
    for applied in ([], [identity]):
        options = patches.restorer_options(unet, restorer, lq, applied)
        with torch.no_grad():
            args = latents(2), torch.tensor([5.0, 700.0]), context
            results.append(unet(*args, transformer_options=options))
    assert results[1].isfinite().all()
    assert relative_l2(results[1], results[0]) > 1e-3


def test_another_checkpoint_of_the_same_shape_is_refused(tmp_path: Path, ada) -> None:
    """The restorer alone does not make the base."""
    path = write_bundled(tmp_path / "same.safetensors")
    model = host.load_base_restorer(path)[0]
    known = dataclasses.replace(ada.info, unet_digest=restoration(model).unet_digests[0])
    other = IdentityAdapter(known)
    other.load_state_dict(ada.state_dict())
    host.apply_identity(model, other)
    weights, metadata = read_weights(path)
    changed = {key: x + 0.5 if key.endswith(".out.2.weight") else x for key, x in weights.items()}
    write_safetensors(tmp_path / "changed.safetensors", changed, metadata)
    with pytest.raises(PFStorerError, match="another Stable Diffusion checkpoint"):
        host.apply_identity(host.load_base_restorer(tmp_path / "changed.safetensors")[0], other)


def test_a_digest_does_not_depend_on_the_type_that_is_loaded() -> None:
    """An adapter fits the same checkpoint in any type, one of an earlier version as well."""
    weights = {name: torch.randn(64) for name in DIGESTED}
    digests = unet_digests(weights)
    assert unet_digests({name: weight.half() for name, weight in weights.items()})[0] == digests[0]
    for load_type in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        rounded = {name: weight.to(load_type) for name, weight in weights.items()}
        assert unet_digests(rounded)[0] in digests  # as earlier versions took it


def test_large_references_are_scaled_to_the_restorers_size(loaded) -> None:
    """The tiny restorer was made for 128 pixels; latents are a quarter, their sides even."""
    photos = [torch.rand(1, 300, 600, 3), torch.rand(2, 60, 44, 1)]
    shapes = [tuple(x.shape) for x in encode_references(loaded[0], loaded[2], photos)]
    assert shapes == [(1, 4, 32, 64), (2, 4, 16, 12)]
