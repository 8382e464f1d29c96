"""Whose heads they are: what is measured of them, and what comes of it."""

import dataclasses
from typing import Any

import comfy.model_management as mm
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from tiny_models import random_adapter, untrained_adapter, write_bundled
from torch import Tensor

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.feedback import RestoreReport
from pfstorer_core.host.measure.judge import Judge
from pfstorer_core.host.people.evidence import evidence_of, likenesses, match_people
from pfstorer_core.host.people.recognition import Recognition
from pfstorer_core.identities.likeness import LikenessScale
from pfstorer_core.measures.similarity import load_embedding
from pfstorer_core.people.found import FoundHead
from pfstorer_core.people.matching import CHOSEN, assign

SIDE = 64  # of a person's part of the picture
HEADS = [
    FoundHead((left + 12, 8, left + 52, 56), torch.ones(8, 8)) for left in range(0, 3 * SIDE, SIDE)
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def adapters(loaded) -> list[Any]:
    return [random_adapter(loaded[0], k, name) for k, name in ((1, "Ada"), (2, "Ben"))]


@pytest.fixture(scope="module")
def picture() -> Tensor:
    people = [portrait_set(number, 1, seed=0, size=SIDE) for number in (1, 2, 3)]
    return torch.cat(people, 3)  # (1, 3, 64, 192)


def test_each_head_and_adapter_is_asked_for_alone(loaded, adapters, picture) -> None:
    model, _, vae = loaded
    together = likenesses(model, vae, picture, HEADS, adapters)
    assert together.shape == (3, 2) and bool(together.isfinite().all())
    alone = likenesses(model, vae, picture, HEADS[1:2], adapters[1:])
    torch.testing.assert_close(alone, together[1:2, 1:], atol=1e-4, rtol=1e-3)
    assert together.flatten().unique().numel() == 6
    applied = host.apply_identity(model, adapters[1])
    others = likenesses(applied, vae, picture, HEADS, adapters)
    torch.testing.assert_close(others, together)  # identities of the MODEL do not count


def test_the_evidence_goes_into_the_assignment_and_the_report(loaded, adapters, picture) -> None:
    model, _, vae = loaded
    report = RestoreReport()
    found = match_people(model, vae, picture, HEADS, adapters, report=report)
    evidence = evidence_of(likenesses(model, vae, picture, HEADS, adapters))
    torch.testing.assert_close(torch.stack([m.evidence for m in found]), evidence)
    assert [m.adapter for m in found] == assign(evidence)
    assert [line.split(" | ")[0] for line in report.lines[:3]] == ["Head 1", "Head 2", "Head 3"]


def test_what_the_user_says_is_not_measured(loaded, adapters, picture) -> None:
    model, _, vae = loaded
    seen: list[int] = []

    def count(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(x))
        return executor(x, *args, **kwargs)

    counted = model.clone()
    counted.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    given = {"choices": "1=ben, 2=nobody, 3=Ada"}
    found = match_people(counted, vae, picture, HEADS, adapters, **given)
    assert [m.adapter for m in found] == [1, None, 0] and not seen
    assert {m.reason for m in found} == {CHOSEN}
    match_people(counted, vae, picture, HEADS, adapters, choices="2=nobody")
    # two heads in two framings at once, for the base and each adapter, under two noises
    assert seen == [4] * 6


def test_nobody_and_nothing(loaded, adapters, picture) -> None:
    model, _, vae = loaded
    assert match_people(model, vae, picture, [], adapters) == []
    (found,) = match_people(model, vae, picture, HEADS[:1], [])
    assert found.adapter is None
    still = untrained_adapter(model, "Still")
    alike = likenesses(model, vae, picture, HEADS, [still])
    assert bool(alike.isnan().all()), "an adapter that changes nothing tells nothing"
    found = match_people(model, vae, picture, HEADS, [still])
    assert [m.adapter for m in found] == [None] * 3


def test_an_adapter_has_a_scale_of_its_own(loaded, adapters, picture) -> None:
    model, _, vae = loaded
    usual = likenesses(model, vae, picture, HEADS, adapters[:1])
    ada = random_adapter(model, 1, "Ada")
    ada.info = dataclasses.replace(ada.info, likeness=LikenessScale(0.5, 0.1))
    own = likenesses(model, vae, picture, HEADS, [ada])
    raw = own * 0.4 + 0.1
    ada.info = dataclasses.replace(ada.info, likeness=LikenessScale(2.0, 1.0))
    torch.testing.assert_close(likenesses(model, vae, picture, HEADS, [ada]), raw - 1)
    assert not torch.allclose(usual, own)


def test_without_a_scale_another_base_is_refused(loaded, adapters, picture) -> None:
    model = loaded[0].clone()
    model.set_attachments(RESTORER_KEY, dataclasses.replace(base_of(model), checks_persons=False))
    with pytest.raises(PFStorerError, match=r"'Ada' does not know how .* train it again, or say"):
        match_people(model, loaded[2], picture, HEADS, adapters)
    ada = random_adapter(model, 1, "Ada")
    ada.info = dataclasses.replace(ada.info, likeness=LikenessScale(0.5, 0.1))
    assert len(match_people(model, loaded[2], picture, HEADS, [ada])) == 3


def test_an_adapter_of_another_base_is_refused(loaded, adapters, picture) -> None:
    foreign = random_adapter(loaded[0], 1, "Eve")
    foreign.info = dataclasses.replace(foreign.info, base_fingerprint="0" * 64)
    with pytest.raises(PFStorerError, match="'Eve' was trained on restorer"):
        match_people(loaded[0], loaded[2], picture, HEADS, [*adapters, foreign])


def test_an_interruption_ends_it(loaded, adapters, picture) -> None:
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        match_people(loaded[0], loaded[2], picture, HEADS, adapters)
    assert len(match_people(loaded[0], loaded[2], picture, HEADS, adapters)) == 3


@pytest.mark.parametrize("most", [1, 0])
def test_a_lack_of_memory_blocks_nothing(loaded, adapters, picture, caplog, most: int) -> None:
    def limit(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return executor(x, *args, **kwargs)

    free = likenesses(loaded[0], loaded[2], picture, HEADS, adapters)
    model = loaded[0].clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "limit", limit)
    found = likenesses(model, loaded[2], picture, HEADS, adapters)
    assert "Out of memory while looking whose face it is" in caplog.text
    if most:
        torch.testing.assert_close(found, free, atol=1e-4, rtol=1e-3)
    else:
        assert bool(found.isnan().all())
        matches = match_people(model, loaded[2], picture, HEADS, adapters)
        assert [m.adapter for m in matches] == [None] * 3


def test_a_recognition_network_has_a_say(loaded, adapters, picture) -> None:
    judge = Judge(load_embedding())  # knows drawn people
    photos = [list(portrait_set(number, 3, seed=5, size=SIDE)) for number in (1, 2)]
    recognition = Recognition(judge, photos)
    said = recognition.evidence(picture, HEADS)
    assert said.shape == (3, 2) and said[0, 0] > 0 > said[0, 1] and said[1, 1] > 0 > said[1, 0]
    assert recognition.lines(["Ada", "Ben"]) == ["Face recognition has photos of Ada, Ben"]
    assert not Recognition(judge, [[], []]).evidence(picture, HEADS).any()
    some = Recognition(judge, [photos[0], []])
    assert some.evidence(picture, HEADS)[:, 1].abs().max() == 0
    assert some.lines(["Ada", "Ben"]) == ["Face recognition has photos of Ada"]
    model, _, vae = loaded
    without = match_people(model, vae, picture, HEADS, adapters)
    together = match_people(model, vae, picture, HEADS, adapters, recognition=recognition)
    for plain, found, part in zip(without, together, said, strict=True):
        torch.testing.assert_close(found.evidence, plain.evidence + part)


def test_where_there_is_no_network_the_report_says_why(picture) -> None:
    photos = [list(portrait_set(1, 2, seed=5, size=SIDE))]
    without = Recognition(Judge(missing="put a network there."), photos)
    assert not without.evidence(picture, HEADS).any()
    (line,) = without.lines(["Ada"])
    assert line == "Face recognition is left out: put a network there."
    (line,) = Recognition(Judge(load_embedding()), [[]]).lines(["Ada"])
    assert "connect photos of the people" in line


def test_where_no_face_is_found_the_network_says_nothing(loaded, adapters, picture) -> None:
    photos = [list(portrait_set(1, 2, seed=5, size=SIDE))]
    blind = Recognition(Judge(load_embedding(), find_faces=lambda picture: []), photos)
    assert not blind.evidence(picture, HEADS).any()
    (line,) = blind.lines(["Ada"])
    assert "found no face in the photos of Ada" in line

    def large(photo: Tensor) -> list[Tensor]:
        """Faces of whole portraits alone: those of 64 px, as the photos are."""
        eyes_nose_mouth = [[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]]
        return [SIDE * torch.tensor(eyes_nose_mouth)] if photo.shape[-1] == SIDE else []

    recognition = Recognition(Judge(load_embedding(), find_faces=large), photos)
    assert bool(recognition.evidence(picture, HEADS).isnan().all())
    model, _, vae = loaded
    plain = match_people(model, vae, picture, HEADS, adapters[:1])
    report = RestoreReport()
    found = match_people(
        model, vae, picture, HEADS, adapters[:1], recognition=recognition, report=report
    )
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(one.evidence, other.evidence)
    assert report.lines[-1] == "Face recognition found no face in: 1, 2, 3"


def test_adapters_are_compared_with_each_other() -> None:
    alone = evidence_of(torch.tensor([[0.7], [0.1]]))
    assert alone[0, 0] > 2 and alone[1, 0] < -2
    among = evidence_of(torch.tensor([[0.7, 0.1], [0.4, 0.4], [0.1, 0.1]]))
    assert among[0, 0] > 5 and among[0, 1] < -5
    assert among[1, 0] < evidence_of(torch.tensor([[0.4]]))[0, 0]
    assert bool((among[2] < -2).all())
    unknown = evidence_of(torch.tensor([[0.7, torch.nan], [torch.nan, torch.nan]]))
    assert unknown[0, 0] == alone[0, 0] and unknown.isnan().sum() == 3
