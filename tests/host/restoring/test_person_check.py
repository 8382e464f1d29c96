"""The check whether a picture shows an adapter's person, and what is told about it."""

import dataclasses
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from tiny_models import image, random_adapter, untrained_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.patch.applied import AUTO
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.restoring.person_check import (
    PersonCheck,
    check_persons,
    limits_of,
)
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.likeness import LikenessScale


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def ada(loaded) -> IdentityAdapter:
    return random_adapter(loaded[0], 1, "Ada")


def checks(loaded: Any, model: Any, images: Tensor) -> list[PersonCheck]:
    return check_persons(model, loaded[2], images)


def pictures(*seeds: int, size: int = 64) -> Tensor:
    return torch.cat([image((size, size), seed=seed).movedim(-1, 1) for seed in seeds])


def mask_of(*regions: tuple[slice, slice] | None, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(regions), *size)
    for mask, region in zip(masks, regions, strict=True):
        if region is not None:
            mask[region] = 1
    return masks


def test_an_adapter_that_changes_nothing_tells_nothing(loaded) -> None:
    model = host.apply_identity(loaded[0], untrained_adapter(loaded[0]))
    (check,) = checks(loaded, model, pictures(1, 2))
    assert bool(check.scores.isnan().all()) and not check.doubtful


def test_gamma_says_nothing_of_the_person(loaded, ada) -> None:
    found = [
        checks(loaded, host.apply_identity(loaded[0], ada, gamma), pictures(1, 2, 3))[0].scores
        for gamma in (0.3, 2.0, AUTO)
    ]
    assert bool((found[0] < 0.5).all())  # no picture is that of an adapter of noise
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_each_picture_has_its_own_score(loaded, ada) -> None:
    model = host.apply_identity(loaded[0], ada)
    together = checks(loaded, model, pictures(*range(10)))[0].scores
    alone = torch.cat([checks(loaded, model, pictures(k))[0].scores for k in (0, 9)])
    assert torch.allclose(together[[0, 9]], alone, atol=1e-5)


def test_it_looks_where_the_mask_is(loaded, ada) -> None:
    picture = torch.cat([pictures(1), pictures(2)], dim=3)  # (1, 3, 64, 128)
    # an area as that of a head that is 48 px high, three quarters of 64
    head = (slice(13, 51), slice(13, 51))
    left = mask_of(head, size=(64, 128))
    left[0, 63, 127] = 1  # a stray pixel changes nothing
    (check,) = checks(loaded, host.apply_identity(loaded[0], ada, mask=left), picture)
    whole = checks(loaded, host.apply_identity(loaded[0], ada), pictures(1))[0]
    assert torch.allclose(check.scores, whole.scores, atol=1e-4)


def test_pictures_with_an_empty_mask_are_not_judged(loaded, ada) -> None:
    masks = mask_of((slice(10, 50), slice(10, 50)), None, size=(64, 64))
    model = host.apply_identity(loaded[0], ada, mask=masks)
    (check,) = checks(loaded, model, pictures(1, 2))
    assert check.scores.isnan().tolist() == [False, True] and 2 not in check.doubtful
    empty = host.apply_identity(loaded[0], ada, mask=torch.zeros(1, 64, 64))
    assert checks(loaded, empty, pictures(1)) == []


def test_whom_it_leaves_out(loaded, ada) -> None:
    unused = host.apply_identity(loaded[0], ada, 0.0)
    second = host.apply_identity(unused, ada)
    assert [check.number for check in checks(loaded, second, pictures(1))] == [2]
    both = host.apply_identity(second, ada)  # without masks nobody knows who is where
    assert checks(loaded, both, pictures(1)) == []


@pytest.mark.parametrize(
    ("checks_persons", "scale", "checked"),
    [(True, None, True), (False, None, False), (False, LikenessScale(0.5, 0.1), True)],
)
def test_an_adapter_or_its_restorer_knows_what_is_usual(
    loaded, checks_persons: bool, scale: LikenessScale | None, checked: bool
) -> None:
    adapter = random_adapter(loaded[0], 1, "Ada")
    adapter.info = dataclasses.replace(adapter.info, likeness=scale)
    model = host.apply_identity(loaded[0], adapter).clone()
    known = dataclasses.replace(base_of(model), checks_persons=checks_persons)
    model.set_attachments(RESTORER_KEY, known)
    settings = {"steps": 1, "check_person": True, "upscaling": "one pass"}
    report = RestoreReport()
    host.restore(model, loaded[2], pictures(1).movedim(1, -1), report=report, **settings)
    assert any("score" in line for line in report.lines) == checked


@pytest.mark.parametrize(("most", "judged"), [(4, True), (0, False)])
def test_a_lack_of_memory_blocks_nothing(loaded, ada, caplog, most: int, judged: bool) -> None:
    def wrapper(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return executor(x, *args, **kwargs)

    model = host.apply_identity(loaded[0], ada)
    free = checks(loaded, model, pictures(*range(8)))[0]
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "limit", wrapper)
    (check,) = checks(loaded, model, pictures(*range(8)))
    assert "Out of memory while looking whose face it is" in caplog.text
    if judged:
        assert torch.allclose(check.scores, free.scores, atol=1e-5)
    else:
        assert str(check) == "Identity 1 (Ada): whether this is the person could not be judged"


def test_the_limit_falls_with_the_picture() -> None:
    limits = limits_of(torch.linspace(0, 1, 21))
    assert torch.equal(limits, limits.sort(descending=True).values)
    assert 1 > limits[0] > limits[-1] > 0


def test_the_restoration_is_the_same_with_it(loaded, ada) -> None:
    model = host.apply_identity(loaded[0], ada)
    pixels = image((64, 64))
    before = restorer_wrapper(model).identities
    report = RestoreReport()
    settings: dict[str, Any] = {"steps": 2, "report": report}
    checked = host.restore(model, loaded[2], pixels, check_person=True, **settings)
    assert any(line.startswith("Identity 1 (Ada): ") and "score" in line for line in report.lines)
    assert torch.equal(host.restore(model, loaded[2], pixels, steps=2), checked)
    assert restorer_wrapper(model).identities == before


def test_what_it_says() -> None:
    check = PersonCheck(2, "Ada", torch.tensor([0.1, -0.5, -0.2]), torch.tensor([-0.15] * 3))
    assert check.doubtful == [2, 3]
    assert str(check) == (
        "Identity 2 (Ada): photo 2, 3 may not show this person (score +0.10, -0.50, -0.20); look "
        "whether adapter and mask are the right ones"
    )
    right = dataclasses.replace(check, scores=check.scores[:1], limits=check.limits[:1])
    assert str(right) == "Identity 2 (Ada): nothing speaks against this person (score +0.10)"
