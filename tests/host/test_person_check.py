"""The check whether a picture shows an adapter's person, and what is told about it."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_models import image, random_adapter, untrained_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.adapter import IdentityAdapter
from pfstorer_core.host import patches
from pfstorer_core.host.person_check import PersonCheck, check_persons
from pfstorer_core.host.progress import RestoreReport


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def ada(loaded) -> IdentityAdapter:
    return random_adapter(loaded[0], 1, "Ada")


def checks(loaded: Any, model: Any, images: Tensor, portraits: bool = True) -> list[PersonCheck]:
    return check_persons(model, loaded[2], images, portraits)


def pictures(*seeds: int, size: int = 64) -> Tensor:
    return torch.cat([image((size, size), seed=seed).movedim(-1, 1) for seed in seeds])


def test_an_adapter_that_changes_nothing_tells_nothing(loaded) -> None:
    model = host.apply_identity(loaded[0], untrained_adapter(loaded[0]))
    (check,) = checks(loaded, model, pictures(1, 2))
    assert torch.equal(check.scores, torch.zeros(2)) and not check.doubtful


def test_the_score_is_the_change_of_the_error(loaded, ada) -> None:
    """Its sign is that of the error's change: an adapter of noise tells any picture worse."""
    loud = host.apply_identity(loaded[0], ada, 2.0)
    (check,) = checks(loaded, loud, pictures(1, 2, 3))
    assert bool((check.scores != 0).all()) and bool((check.scores < 1).all())
    (same,) = checks(loaded, host.apply_identity(loaded[0], ada, 0.3), pictures(1, 2, 3))
    assert torch.equal(same.scores, check.scores)  # gamma is taste, and says nothing of the person


def test_each_picture_has_its_own_score(loaded, ada) -> None:
    model = host.apply_identity(loaded[0], ada)
    together = checks(loaded, model, pictures(*range(10)))[0].scores
    alone = torch.cat([checks(loaded, model, pictures(k))[0].scores for k in (0, 9)])
    assert torch.allclose(together[[0, 9]], alone, atol=1e-5)


def test_it_looks_where_the_mask_is(loaded, ada) -> None:
    picture = torch.cat([pictures(1), pictures(2)], dim=3)  # (1, 3, 64, 128)
    left = torch.zeros(1, 64, 128)
    left[:, 8:56, 8:56] = 1
    model = host.apply_identity(loaded[0], ada, mask=left)
    (check,) = checks(loaded, model, picture, portraits=False)
    whole = checks(loaded, host.apply_identity(loaded[0], ada), pictures(1))[0]
    assert torch.allclose(check.scores, whole.scores, atol=1e-4)  # 48 px are 0.75 of 64


def test_whom_it_leaves_out(loaded, ada) -> None:
    model = host.apply_identity(loaded[0], ada)
    assert checks(loaded, model, pictures(1), portraits=False) == []  # nobody knows where she is
    unused = host.apply_identity(loaded[0], ada, 0.0)
    second = host.apply_identity(unused, ada)
    assert [check.number for check in checks(loaded, second, pictures(1))] == [2]


def test_the_restoration_is_the_same_with_it(loaded, ada) -> None:
    model = host.apply_identity(loaded[0], ada)
    pixels = image((64, 64))
    before = patches.restorer_wrapper(model).identities
    report = RestoreReport()
    settings: dict[str, Any] = {"steps": 2, "report": report}
    checked = host.restore(model, loaded[2], pixels, check_person=True, **settings)
    assert any(line.startswith("Identity 1 (Ada): ") and "score" in line for line in report.lines)
    assert torch.equal(host.restore(model, loaded[2], pixels, steps=2), checked)
    assert patches.restorer_wrapper(model).identities == before


def test_what_it_says() -> None:
    check = PersonCheck(2, "Ada", torch.tensor([0.1, -0.5, -0.2]), torch.tensor([-0.15] * 3))
    assert check.doubtful == [2, 3]
    assert str(check) == (
        "Identity 2 (Ada): photo 2, 3 may not show this person (score +0.10, -0.50, -0.20); look "
        "whether adapter and mask are the right ones"
    )
    right = dataclasses.replace(check, scores=check.scores[:1], limits=check.limits[:1])
    assert str(right) == "Identity 2 (Ada): nothing speaks against this person (score +0.10)"
