"""Each person's adapter acts within the mask of his head alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import image, random_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.patch.model import restorer_wrapper
from pfstorer_core.host.people.finders import GivenHeads, find_people
from pfstorer_core.host.people.personalize import PersonalizedPeople, personalize_people
from pfstorer_core.people.people import FoundPeople

SIZE = (64, 96)
RESTORE = {"scale": 1.0, "steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """MODEL and VAE."""
    path: Path = tmp_path_factory.mktemp("people") / "tiny.safetensors"
    model, _, vae = host.load_base_restorer(write_bundled(path))
    return model, vae


@pytest.fixture(scope="module")
def adapters(loaded: Any) -> list[Any]:
    return [random_adapter(loaded[0], k, name) for k, name in enumerate(("Ada", "Bob", "Cyd"))]


def masks(count: int = 2) -> Tensor:
    """Heads side by side."""
    found = torch.zeros(count, *SIZE)
    for k, mask in enumerate(found):
        mask[8:40, 4 + 30 * k : 28 + 30 * k] = 1
    return found


def people(count: int = 2) -> FoundPeople:
    return find_people(image(SIZE), given=GivenHeads(masks=masks(count)))


def personalized(
    loaded: Any, adapters: Sequence[Any], choices: str, found: FoundPeople, **more: Any
) -> tuple[PersonalizedPeople, list[str]]:
    report = RestoreReport()
    picture = image(SIZE, len(found.heads))
    result = personalize_people(
        *loaded, picture, found, adapters, choices=choices, report=report, **more
    )
    return result, report.lines


def test_the_result_is_that_of_apply_personalization_with_the_same_masks(
    loaded: Any, adapters: list[Any]
) -> None:
    model, vae = loaded
    result, _ = personalized(loaded, adapters, "1=Bob, 2=Ada", people())
    by_hand = host.apply_identity(model, adapters[0], 1.0, masks()[1:])
    by_hand = host.apply_identity(by_hand, adapters[1], 1.0, masks()[:1])
    restored, wanted = (
        host.restore(m, vae, image(SIZE), **RESTORE) for m in (result.model, by_hand)
    )
    assert torch.equal(restored, wanted)
    assert (restored - host.restore(model, vae, image(SIZE), **RESTORE)).abs().max() > 1e-2
    assert result.labels == ["1 Bob", "2 Ada"]


def test_who_is_nobody_is_restored_by_the_base_and_said(loaded: Any, adapters: list[Any]) -> None:
    result, lines = personalized(loaded, adapters, "1=Bob, 2=nobody", people())
    (identity,) = restorer_wrapper(result.model).identities
    assert identity.adapter.info.name == "Bob"
    torch.testing.assert_close(identity.mask, masks()[:1])
    assert result.labels == ["1 Bob", "2 ?"]
    assert [line for line in lines if line.startswith("Not recognised: 2, ")]


def test_more_adapters_than_heads_are_said(loaded: Any, adapters: list[Any]) -> None:
    _, lines = personalized(loaded, adapters, "1=Cyd", people(1))
    assert [line for line in lines if "3 adapters for 1 head" in line and "Ada, Bob" in line]


def test_each_picture_of_a_batch_has_its_own_people(loaded: Any, adapters: list[Any]) -> None:
    found = FoundPeople((people().heads[0], (), people().heads[0][1:]), SIZE)
    result, lines = personalized(loaded, adapters, "1=Ada; 2=Bob\n3=Ada", found)
    ada, bob = restorer_wrapper(result.model).identities
    nobody = torch.zeros(SIZE)
    torch.testing.assert_close(ada.mask, torch.stack([masks()[0], nobody, masks()[1]]))
    torch.testing.assert_close(bob.mask, torch.stack([masks()[1], nobody, nobody]))
    assert result.labels == ["1 Ada", "2 Bob", "3 Ada"]
    assert [line for line in lines if line.startswith("Picture ")] == [
        "Picture 1:",
        "Picture 2:",
        "Picture 3:",
    ]
    assert [line for line in lines if line.startswith("Head 3 ")]
    restored = host.restore(result.model, loaded[1], image(SIZE, 3), **RESTORE)
    assert restored.shape == (3, *SIZE, 3)


def test_how_strongly_goes_to_each(loaded: Any, adapters: list[Any]) -> None:
    for gamma in (0.5, "auto"):
        result, _ = personalized(loaded, adapters, "1=Ada,2=Bob", people(), gamma=gamma)
        assert [x.strength for x in restorer_wrapper(result.model).identities] == [gamma] * 2


def test_nobody_found_is_the_base(loaded: Any, adapters: list[Any]) -> None:
    nobody = find_people(image(SIZE), given=GivenHeads(masks=torch.zeros(1, *SIZE)))
    result, _ = personalized(loaded, adapters, "", nobody)
    assert restorer_wrapper(result.model).identities == ()
    assert result.labels == []


def test_what_cannot_be_is_refused(loaded: Any, adapters: list[Any]) -> None:
    with pytest.raises(PFStorerError, match="There is no adapter of anybody"):
        personalized(loaded, [], "", people())
    both = FoundPeople(people().heads * 2, SIZE)
    with pytest.raises(PFStorerError, match="names head 7, but 4 were found"):
        personalized(loaded, adapters, "7=Ada", both)
    with pytest.raises(PFStorerError, match="cannot be read"):
        personalized(loaded, adapters, "the left one is Ada", both)
    with pytest.raises(PFStorerError, match=r"found in 1 image\(s\) of 96 x 64 px, but 1 of 64 x"):
        personalize_people(*loaded, image((64, 64)), people(), adapters)
