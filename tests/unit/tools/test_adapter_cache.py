"""Adapters of an evaluation: trained once, and kept by all that they were trained on."""

from pathlib import Path

import torch
from evaluation.adapters import FULL, VARIANTS, AdapterCache, file_digest
from evaluation.people import procedural_person
from torch import Tensor

from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.training.identity import PRESETS, IdentityTrainingConfig


def drawn_photos() -> list[Tensor]:
    """Photos of a drawn person."""
    person = procedural_person(5_000_000, photos=3, references=2, pictures=4, size=32, seed=0)
    return person.photos


def tiny_adapter(name: str) -> IdentityAdapter:
    info = AdapterInfo(
        name=name,
        base_name="base",
        base_fingerprint="0",
        context_dim=64,
        site_channels={"middle_block.0": 32},
        config=PersonalizationConfig(),
    )
    return IdentityAdapter.initialise(info)


class CountingTrainer:
    """Gives untrained adapters and keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, IdentityTrainingConfig, str]] = []

    def __call__(self, photos, config, name) -> IdentityAdapter:
        self.calls.append((len(photos), config, name))
        return tiny_adapter(name)


def test_adapters_are_trained_once_and_read_afterwards(tmp_path: Path) -> None:
    photos = drawn_photos()
    config = PRESETS["quick"]
    first = CountingTrainer()
    cache = AdapterCache(tmp_path / "adapters", "base", first)
    assert cache.cost("5000000", photos, config) is None
    trained = cache.get("5000000", photos, config)
    read = cache.get("5000000", photos, config)
    assert first.calls == [(3, config, "5000000")]
    for a, b in zip(trained.state_dict().values(), read.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    cost = cache.cost("5000000", photos, config)
    assert cost is not None and cost.steps == config.steps and cost.seconds >= 0

    later = CountingTrainer()
    AdapterCache(tmp_path / "adapters", "base", later).get("5000000", photos, config)
    assert not later.calls


def test_an_adapters_file_depends_on_all_that_it_is_trained_on(tmp_path: Path) -> None:
    photos = drawn_photos()
    config = PRESETS["quick"]
    cache = AdapterCache(tmp_path, "base", CountingTrainer())
    other_base = AdapterCache(tmp_path, "other", CountingTrainer())
    paths = {
        cache.path("a", photos, config),
        cache.path("b", photos, config),
        cache.path("a", photos[:2], config),
        cache.path("a", [photos[1], photos[0], photos[2]], config),
        cache.path("a", photos, PRESETS["standard"]),
        other_base.path("a", photos, config),
    }
    trained_otherwise = [v for v in VARIANTS.values() if v.photos is None]
    paths |= {cache.path("a", photos, variant.config(config)) for variant in trained_otherwise}
    # Full is the first of the set; the references given at inference change no training.
    assert len(paths) == 6 + len(trained_otherwise) - 3


def test_variants_change_what_their_name_says() -> None:
    full = PRESETS["standard"]
    assert VARIANTS[FULL].config(full) == full
    assert VARIANTS["references at inference"].config(full) == full
    assert VARIANTS["without regularizer"].config(full).regularizer_weight == 0
    assert not VARIANTS["without learned gamma"].config(full).learned_gamma
    assert VARIANTS["without reference features"].config(full).reference_probability == 0
    assert VARIANTS["without identity tokens"].config(full).tokens == 0
    assert VARIANTS["half the steps"].config(full).steps == full.steps // 2
    assert VARIANTS["twice the steps"].config(full).steps == full.steps * 2


def test_a_files_digest_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"others")
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    assert file_digest(tmp_path / "a", None) == a != file_digest(tmp_path / "a", tmp_path / "c")
