"""What is kept for a sampling: computed once, equal to the plain way, and gone afterwards."""

import gc
import weakref
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from golden_weights import relative_l2
from personalized_sampling import sample
from tiny_models import latents, prompt, random_adapter

from pfstorer_core import host
from pfstorer_core.host.patch import sampling
from pfstorer_core.host.patch.sampling import SAMPLING
from pfstorer_core.identities.block import PersonalizationBlock
from pfstorer_core.identities.config import PersonalizationConfig


def plain(model: Any) -> Any:
    """A clone that keeps nothing between steps."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, SAMPLING)
    return model


@pytest.fixture
def prepared(monkeypatch) -> list[int]:
    """Gets the number of people at each preparation of a site's blocks."""
    counts: list[int] = []
    original = PersonalizationBlock.prepare.__func__

    def counting(cls, parts, *args):
        counts.append(len(parts))
        return original(cls, parts, *args)

    monkeypatch.setattr(PersonalizationBlock, "prepare", classmethod(counting))
    return counts


@pytest.mark.parametrize("people", [0, 1, 2])
@pytest.mark.parametrize("referred", [False, True])
def test_it_gives_what_the_plain_way_gives(model, ada, bob, people: int, referred: bool) -> None:
    applied = model
    left = torch.zeros(1, 16, 16)
    left[..., :9] = 0.8
    references = latents(seed=3) if referred else None
    for adapter, mask in ((ada, left), (bob, None))[:people]:
        applied = host.apply_identity(applied, adapter, gamma=1.5, mask=mask, references=references)
    assert relative_l2(sample(applied), sample(plain(applied))) < 1e-5
    assert torch.equal(sample(applied), sample(applied))


def test_each_text_is_prepared_once_a_sampling(model, ada, bob, prepared) -> None:
    applied = host.apply_identity(model, ada)
    sample(applied, steps=4)
    assert prepared == [1] * len(ada.sites)
    prepared.clear()
    sample(host.apply_identity(applied, bob), steps=4)
    assert prepared == [2] * len(ada.sites)


def test_people_of_other_sizes_go_one_by_one(model, ada, prepared) -> None:
    other = random_adapter(model, 3, "Cleo", PersonalizationConfig(tokens=4))
    applied = host.apply_identity(host.apply_identity(model, ada), other)
    assert relative_l2(sample(applied), sample(plain(applied))) < 1e-5
    assert set(prepared) == {1, 2}


def test_a_text_that_changes_by_step_is_told_apart(model, ada, prepared) -> None:
    applied = host.apply_identity(model, ada)
    early = prompt(1, start_percent=0.0, end_percent=0.5)
    late = prompt(3, start_percent=0.5, end_percent=1.0)
    settings = {"positive": early + late, "steps": 4}
    assert relative_l2(sample(applied, **settings), sample(plain(applied), **settings)) < 1e-5
    assert len(prepared) == 2 * len(ada.sites)


def test_a_method_without_a_faster_form_runs_as_ever(model, ada, bob, monkeypatch) -> None:
    applied = host.apply_identity(host.apply_identity(model, ada), bob)
    expected = sample(plain(applied))
    monkeypatch.setattr(PersonalizationBlock, "prepare", classmethod(lambda cls, *args: None))
    assert torch.equal(sample(applied), expected) or relative_l2(sample(applied), expected) < 1e-5


def test_it_is_gone_when_the_sampling_ends(model, ada, monkeypatch) -> None:
    kept: list[Any] = []

    class Watched(sampling.SamplingMemory):
        def __init__(self) -> None:
            super().__init__()
            kept.append(weakref.ref(self))

    monkeypatch.setattr(sampling, "SamplingMemory", Watched)
    sample(host.apply_identity(model, ada))
    gc.collect()
    assert len(kept) == 1 and kept[0]() is None


def test_texts_that_are_kept_are_few(model) -> None:
    memory = sampling.SamplingMemory()
    made: list[int] = []
    texts = [torch.full((1, 2, 3), float(k)) for k in range(6)]
    for _ in range(2):
        for k, text in enumerate(texts):
            memory.prepared(memory.text(text.clone()), "site", lambda k=k: made.append(k))
    assert made == [*range(6), *range(6)]
    memory.prepared(memory.text(texts[-1]), "site", lambda: made.append(-1))
    assert made[-1] == 5, "the last are still there"
