"""Tests of the identity adapter's file: exact, plain, and safe against what others may send."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import (
    ADAPTER_FILE,
    AdapterInfo,
    IdentityAdapter,
)
from pfstorer_core.identities.config import PersonalizationConfig
from pfstorer_core.identities.likeness import LikenessScale

SITES = {"input_blocks.1.0": 32, "middle_block.2": 64, "output_blocks.0.1": 64}
INFO = AdapterInfo(
    name="Zoë / 小林",
    base_name="mini",
    base_fingerprint="ab" * 32,
    context_dim=16,
    site_channels=SITES,
    config=PersonalizationConfig(tokens=3),
    photos=5,
    steps=1200,
    date="2024-05-06",
    training={"steps": 1200, "snr_gamma": None, "degradations": [["light", 0.5]]},
)


def adapter(info: AdapterInfo = INFO) -> IdentityAdapter:
    made = IdentityAdapter.initialise(info, seed=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "zoe.safetensors"
    adapter().save(path)
    return path


def rewrite(path: Path, weights: dict[str, Any] | None = None, **values: Any) -> None:
    """Changes weights (None removes one) and metadata of a file."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[ADAPTER_FILE.key])
    state = {**safetensors.torch.load_file(path), **(weights or {})}
    state = {key: value for key, value in state.items() if value is not None}
    metadata = {k: v for k, v in {**metadata, **values}.items() if v is not ...}
    safetensors.torch.save_file(state, path, {ADAPTER_FILE.key: json.dumps(metadata)})


def test_a_file_holds_the_adapter_exactly(path: Path) -> None:
    half = adapter().half()
    read = IdentityAdapter.load(path)
    assert read.info == INFO
    assert read.sites == tuple(SITES)
    assert not read.training
    for (key, value), (other, expected) in zip(
        read.state_dict().items(), half.state_dict().items(), strict=True
    ):
        assert key == other
        assert value.dtype == torch.float32
        assert torch.equal(value, expected.float())
    before = path.read_bytes()
    read.save(path)
    assert path.read_bytes() == before, "saving what was read changes nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_other_types_can_be_kept(tmp_path: Path, dtype: torch.dtype | None) -> None:
    made = adapter()
    made.save(tmp_path / "a.safetensors", dtype)
    read = IdentityAdapter.load(tmp_path / "a.safetensors")
    for value, expected in zip(read.state_dict().values(), made.state_dict().values(), strict=True):
        assert torch.equal(value, expected.to(dtype or torch.float32).float())


def test_the_description_is_plain_json_of_known_fields(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {ADAPTER_FILE.key, "pfstorer_sha256"}
    values = json.loads(metadata[ADAPTER_FILE.key])
    assert values.pop("format_version") == ADAPTER_FILE.version == 1
    assert set(values) == {
        "name",
        "base_name",
        "base_fingerprint",
        "context_dim",
        "site_channels",
        "config",
        "photos",
        "steps",
        "date",
        "training",
        "unet_digest",
        "method",
        "likeness",
    }
    assert values["method"] == "pfstorer"
    assert values["config"] == dataclasses.asdict(INFO.config)
    assert values["site_channels"] == SITES
    assert str(path.parent).encode() not in path.read_bytes()
    assert {key.split(".")[1] for key in adapter().state_dict()} == {
        site.replace(".", "_") for site in SITES
    }


def test_what_is_usual_for_the_person_is_kept(tmp_path: Path) -> None:
    scale = LikenessScale(own=0.7488, strangers=-0.0284)
    adapter(dataclasses.replace(INFO, likeness=scale)).save(tmp_path / "a.safetensors")
    assert IdentityAdapter.load(tmp_path / "a.safetensors").info.likeness == scale
    relative = scale.relative(torch.tensor([0.7488, -0.0284, 0.3602]))
    torch.testing.assert_close(relative, torch.tensor([1.0, 0.0, 0.5]))


def test_files_without_it_are_older(path: Path) -> None:
    rewrite(path, likeness=...)
    assert IdentityAdapter.load(path).info.likeness is None


@pytest.mark.parametrize(
    "likeness",
    [
        {"own": 0.5},
        {"own": 0.5, "strangers": 0.5},
        {"own": float("nan"), "strangers": 0.0},
        {"own": 1e9, "strangers": 0.0},
        {"own": "x", "strangers": 0.0},
        {"own": 0.5, "strangers": 0.0, "more": 1.0},
        [0.5, 0.0],
        3,
    ],
)
def test_what_cannot_be_usual_is_refused(path: Path, likeness: Any) -> None:
    rewrite(path, likeness=likeness)
    with pytest.raises(PFStorerError, match=r"'zoe.safetensors'"):
        IdentityAdapter.load(path)


def test_the_adapter_answers_for_its_sites() -> None:
    made = adapter()
    assert made.block("middle_block.2").out.out_features == 64
    with pytest.raises(KeyError):
        made.block("middle_block.0")


def test_an_untrained_adapter_adds_nothing_and_is_a_function_of_the_seed() -> None:
    a, b, c = (IdentityAdapter.initialise(INFO, seed) for seed in (0, 0, 1))
    for site, channels in SITES.items():
        assert not a.block(site)(torch.randn(1, channels, 4, 4), torch.randn(1, 3, 16)).any()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_a_copy_is_frozen_and_of_its_own() -> None:
    made = adapter()
    copied = made.copy_with(torch.nn, torch.float64)
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in copied.parameters())
    assert copied.info is made.info
    key = "blocks.middle_block_2.out.weight"
    before = copied.state_dict()[key].clone()
    with torch.no_grad():
        made.block("middle_block.2").out.weight.zero_()
    assert torch.equal(copied.state_dict()[key], before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_the_file_cannot_hold_are_not_written(tmp_path: Path, value: float) -> None:
    made = adapter()
    with torch.no_grad():
        made.block("middle_block.2").gamma.weight[3] = value
    with pytest.raises(PFStorerError, match=r"2.gamma.weight is not finite.*not saved"):
        made.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_newer_file_asks_for_an_update(path: Path) -> None:
    rewrite(path, format_version=2, something_new=1)
    with pytest.raises(PFStorerError, match=r"'zoe.safetensors' has format version 2.* update PF"):
        IdentityAdapter.load(path)


@pytest.mark.parametrize("method", ["lora", 3, None])
def test_an_unknown_method_asks_for_an_update(path: Path, method: object) -> None:
    rewrite(path, method=method)
    with pytest.raises(PFStorerError, match=r"'zoe.safetensors' is of the method of .* update PF"):
        IdentityAdapter.load(path)


def test_files_without_a_method_are_of_the_first(path: Path) -> None:
    rewrite(path, method=...)
    assert IdentityAdapter.load(path).info.method == "pfstorer"


WEIGHT = "blocks.middle_block_2.gamma.weight"


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({WEIGHT: None}, f"lacks 1 of the adapter's .*'{WEIGHT}'"),
        ({"blocks.more": torch.zeros(1)}, "1 weights that no known adapter has.*'blocks.more'"),
        ({WEIGHT: torch.zeros(63)}, rf"'{WEIGHT}' of \(63,\) instead of \(64,\)"),
        ({WEIGHT: torch.zeros(64, 1)}, r"of \(64, 1\) instead"),
        ({WEIGHT: torch.full((64,), float("nan"))}, f"NaN or infinite values in '{WEIGHT}'"),
        ({WEIGHT: torch.full((64,), float("inf"))}, f"NaN or infinite values in '{WEIGHT}'"),
        ({WEIGHT: torch.zeros(64, dtype=torch.int32)}, f"stores '{WEIGHT}' as int32"),
    ],
)
def test_damaged_weights_are_named(path: Path, weights: dict, fault: str) -> None:
    rewrite(path, weights)
    with pytest.raises(PFStorerError, match=rf"^Identity adapter 'zoe.safetensors' .*{fault}"):
        IdentityAdapter.load(path)


CONFIG = dataclasses.asdict(INFO.config)


@pytest.mark.parametrize(
    "values",
    [
        {"format_version": ...},
        {"format_version": "2"},
        {"format_version": 0},
        {"format_version": True},
        {"format_version": float("nan")},
        {"name": 5},
        {"name": ...},
        {"date": None},
        {"base_fingerprint": ["x"]},
        {"photos": "many"},
        {"photos": -1},
        {"photos": True},
        {"steps": 1.5},
        {"context_dim": 0},
        {"context_dim": 10**18},
        {"training": "fast"},
        {"surprise": 1},
        {"site_channels": {}},
        {"site_channels": None},
        {"site_channels": ["input_blocks.1.0"]},
        {"site_channels": {"input_blocks.1.0": 33}},
        {"site_channels": {"input_blocks.1.0": -32}},
        {"site_channels": {"input_blocks.1.0": 2**40}},
        {"site_channels": {"input_blocks.1.0": "32"}},
        {"site_channels": {"": 32}},
        {"site_channels": {"keys": 32}},
        {"site_channels": {"input_blocks.1.0": 32, "input_blocks_1_0": 32}},
        {"site_channels": {f"input_blocks.{n}.0": 32 for n in range(5000)}},
        {"config": None},
        {"config": {**CONFIG, "tokens": -1}},
        {"config": {**CONFIG, "tokens": 10**12}},
        {"config": {**CONFIG, "min_width": "64"}},
        {"config": {**CONFIG, "head_dim": 0}},
        {"config": {**CONFIG, "learned_gamma": "no"}},
        {"config": {**CONFIG, "more": 1}},
    ],
    ids=lambda values: "-".join(f"{k}={v!r}"[:40] for k, v in values.items()),
)
def test_a_wrong_description_is_refused_and_the_file_named(path: Path, values: dict) -> None:
    rewrite(path, **values)
    with pytest.raises(PFStorerError, match=r"'zoe.safetensors' describes itself wrongly"):
        IdentityAdapter.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"text"', "null", "[" * 100_000, "{}"])
def test_a_description_that_is_no_json_object_is_refused(path: Path, text: str) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {ADAPTER_FILE.key: text})
    with pytest.raises(PFStorerError, match=r"'zoe.safetensors' describes itself wrongly"):
        IdentityAdapter.load(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(PFStorerError, match=r"'other.safetensors' is no identity adapter; choose"):
        IdentityAdapter.load(other)
    torch.save(adapter().state_dict(), other)
    with pytest.raises(PFStorerError, match="is no identity adapter"):
        IdentityAdapter.load(other)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PFStorerError, match=r"'zoe.safetensors' is "):
            IdentityAdapter.load(path)
    with pytest.raises(PFStorerError, match="does not exist"):
        IdentityAdapter.load(tmp_path / "gone.safetensors")


class Hostile:
    """A pickle that makes a folder when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_pickles_are_refused_and_run_nothing(tmp_path: Path) -> None:
    place = tmp_path / "made"
    file = tmp_path / "evil.safetensors"
    file.write_bytes(pickle.dumps(Hostile(place)))
    with pytest.raises(PFStorerError, match="pickle, which could run code"):
        IdentityAdapter.load(file)
    torch.save({ADAPTER_FILE.key: Hostile(place)}, file)
    with pytest.raises(PFStorerError, match="could run code"):
        IdentityAdapter.load(file)
    assert not place.exists()
