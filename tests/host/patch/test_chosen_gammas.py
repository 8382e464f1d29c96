"""Gamma chosen from the picture, in whatever order MODEL, identity and picture come together."""

import re
from typing import Any

import comfy.sample
import pytest
import torch
from tiny_models import prompt, random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.images import encode_lq
from pfstorer_core.host.patch.applied import AUTO
from pfstorer_core.host.patch.chosen_gammas import gamma_report, known_image
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.automatic_gamma import gamma_for
from pfstorer_core.pictures.detail import degradation_level


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def ada(loaded) -> IdentityAdapter:
    return random_adapter(loaded[0], 1, "Ada")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """A sharp picture and a very blurred one, as IMAGE (2, 128, 128, 3)."""
    sharp = portrait_set(3, 2, 1, 128)
    small = torch.nn.functional.interpolate(sharp[1:], (10, 10), mode="area")
    blurred = torch.nn.functional.interpolate(small, (128, 128), mode="bicubic").clamp(0, 1)
    return torch.cat([sharp[:1], blurred]).movedim(1, -1)


def restore(loaded: Any, model: Any, photos: Tensor, **settings: Any) -> Tensor:
    return host.restore(model, loaded[2], photos, steps=2, color_fix="none", **settings)


def sample(model: Any, batch: int) -> Tensor:
    latent = torch.zeros(batch, 4, 32, 32)
    noise = comfy.sample.prepare_noise(latent, 1, [0] * batch)
    return comfy.sample.sample(
        model, noise, 2, cfg=1.0, sampler_name="euler", scheduler="normal", positive=prompt(1),
        negative=prompt(2), latent_image=latent, disable_pbar=True, seed=1,
    )  # fmt: skip


def test_each_picture_gets_the_gamma_of_its_degradation(loaded, ada, photos) -> None:
    gammas = gamma_for(degradation_level(photos.movedim(-1, 1)))
    least, most = gamma_for(torch.tensor([0.0, 1.0]))
    assert least <= gammas[0] < gammas[1] == most
    report = RestoreReport()
    found = restore(loaded, host.apply_identity(loaded[0], ada, AUTO), photos, report=report)
    for k, gamma in enumerate(gammas.tolist()):
        fixed = host.apply_identity(loaded[0], ada, gamma)
        assert torch.allclose(restore(loaded, fixed, photos[k : k + 1])[0], found[k], atol=1e-5)
    other = restore(loaded, host.apply_identity(loaded[0], ada, 1.0), photos)
    assert not torch.allclose(other[0], found[0], atol=1e-4)
    said = f"gamma {gammas[0]:.2f}, {gammas[1]:.2f} (automatic)"
    assert any(said in line for line in report.lines)


def test_it_looks_at_the_identitys_own_region(loaded, ada, photos) -> None:
    both = torch.cat([photos[:1], photos[1:]], dim=2)  # (1, 128, 256, 3): sharp left, blurred right
    left = torch.zeros(1, 128, 256)
    left[..., :128] = 1
    model = host.apply_identity(loaded[0], ada, AUTO, mask=left)
    model = host.apply_identity(model, ada, AUTO, mask=1 - left)
    report = RestoreReport()
    restore(loaded, model, both, report=report, tile_size=64)
    lines = [line for line in report.lines if line.startswith("Identity")]
    first, second = (float(re.findall(r"gamma (\d\.\d\d) \(auto", line)[0]) for line in lines)
    sharp, blurred = gamma_for(degradation_level(photos.movedim(-1, 1))).tolist()
    assert first < (sharp + blurred) / 2 < second


def test_the_order_does_not_matter(loaded, ada, photos) -> None:
    lq_latent = encode_lq(loaded[0], loaded[2], photos)
    before = host.condition_on_lq(host.apply_identity(loaded[0], ada, AUTO), lq_latent, photos)
    after = host.apply_identity(host.condition_on_lq(loaded[0], lq_latent, photos), ada, AUTO)
    assert torch.equal(sample(before, 2), sample(after, 2))
    assert gamma_report(before) == gamma_report(after) and len(gamma_report(after)) == 1
    again = host.condition_on_lq(after, lq_latent, photos.flip(0))  # another picture, other gammas
    assert gamma_report(again) != gamma_report(after)


def test_without_the_picture_it_says_so(loaded, ada, photos) -> None:
    lq_latent = encode_lq(loaded[0], loaded[2], photos)
    model = host.condition_on_lq(host.apply_identity(loaded[0], ada, AUTO), lq_latent)
    with pytest.raises(PFStorerError, match="gamma of 'Ada' is automatic, but the image"):
        sample(model, 2)
    known = host.condition_on_lq(host.apply_identity(loaded[0], ada, AUTO), lq_latent, photos)
    sample(known, 2)
    other = host.condition_on_lq(known, lq_latent)  # a latent of which no picture is known
    with pytest.raises(PFStorerError, match="gamma of 'Ada' is automatic, but the image"):
        sample(other, 2)


def test_other_words_are_refused(loaded, ada) -> None:
    with pytest.raises(PFStorerError, match=r"gamma is automatic; choose 0 .* or 'auto'"):
        host.apply_identity(loaded[0], ada, "automatic")  # type: ignore[arg-type]


def test_a_restoration_without_it_keeps_no_picture(loaded, ada, photos) -> None:
    model = host.apply_identity(loaded[0], ada, 1.0)
    restore(loaded, model, photos)
    assert known_image(model) is None


def test_many_pictures_are_told_in_short(loaded, ada, photos) -> None:
    model = host.apply_identity(loaded[0], ada, AUTO)
    report = RestoreReport()
    restore(loaded, model, photos[:, :64, :64].repeat(5, 1, 1, 1), report=report)
    (line,) = (line for line in report.lines if line.startswith("Identity"))
    found = re.search(r"gamma (\d\.\d\d) to (\d\.\d\d) \(automatic\)", line)
    assert found is not None and float(found[1]) < float(found[2])
