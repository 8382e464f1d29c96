"""Training of identity adapters on a restorer's MODEL: what it learns, and what it leaves alone."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch
from comfy.cli_args import args
from golden_weights import relative_l2
from tiny_models import UNET, image, write_bundled
from torch import Tensor, nn

from pfstorer_core import host
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.base import RESTORER_KEY, base_of
from pfstorer_core.host.feedback import TrainingProgress
from pfstorer_core.host.load.bundled import load_bundled
from pfstorer_core.host.load.folders import MINI_RESTORER_PATH
from pfstorer_core.host.sites import find_identity_sites
from pfstorer_core.host.train.from_model import scaled_encoder, trainable_unet
from pfstorer_core.host.train.network import PersonalizedNetwork
from pfstorer_core.host.train.setup import _precision
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.restorers.base import BaseRestorer
from pfstorer_core.training.identity import (
    IdentityTrainingConfig,
    build_photo_pool,
    identity_objective,
)
from pfstorer_core.training.loop import step_generator
from pfstorer_core.training.losses import noise_schedule

PERSON = 1_000_001
QUICK = IdentityTrainingConfig(
    steps=4, batch=2, views_per_photo=2, size=32, preview_every=2, mixed_precision="no"
)


class Interruption(BaseException):
    """As ComfyUI's own: no `Exception`."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL, CLIP and VAE."""
    folder = tmp_path_factory.mktemp("restorers")
    return host.load_base_restorer(write_bundled(folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    """Two batches of IMAGEs of different sizes, three photos in all."""
    return [
        portrait_set(PERSON, 2, seed=0, size=96).movedim(1, -1),
        portrait_set(PERSON, 1, seed=5, size=80).movedim(1, -1)[:, :72],
    ]


def train(loaded: Any, photos: list[Tensor], **settings: Any) -> IdentityAdapter:
    config = dataclasses.replace(QUICK, **settings.pop("config", {}))
    return host.train_identity(loaded[0], loaded[2], photos, config, **settings)


def hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def same(a: IdentityAdapter, b: IdentityAdapter) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def stop_at(step: int, reports: list[TrainingProgress]) -> Callable[[TrainingProgress], None]:
    """Collects reports and ends the run at a step of the training."""

    def report(progress: TrainingProgress) -> None:
        reports.append(progress)
        if progress.stage == "training" and progress.done == step and progress.sheet is None:
            raise Interruption

    return report


def steps_of(reports: list[TrainingProgress]) -> list[int]:
    return [r.done for r in reports if r.stage == "training" and r.sheet is None]


@pytest.fixture(scope="module")
def whole(loaded, photos) -> tuple[IdentityAdapter, list[TrainingProgress]]:
    """The adapter and the reports of an uninterrupted run."""
    reports: list[TrainingProgress] = []
    return train(loaded, photos, name="Ada", on_progress=reports.append), reports


def test_the_adapter_is_described_and_changes_the_result(loaded, whole, tmp_path: Path) -> None:
    adapter, _ = whole
    info = adapter.info
    assert (info.name, info.photos, info.steps) == ("Ada", 3, 4)
    assert info.base_name == base_of(loaded[0]).info.name == "tiny"
    assert info.base_fingerprint == base_of(loaded[0]).info.fingerprint
    assert info.context_dim == UNET["context_dim"]
    assert info.site_channels == find_identity_sites(loaded[0].model.diffusion_model)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert not any(p.requires_grad or p.is_inference() for p in adapter.parameters())
    assert all(adapter.block(site).out.weight.any() for site in adapter.sites), "each block learned"
    adapter.save(tmp_path / "ada.safetensors")
    read = IdentityAdapter.load(tmp_path / "ada.safetensors")
    assert read.info.training["steps"] == 4 and read.info.training["batch"] == 2
    pixels = image()
    base = host.restore(loaded[0], loaded[2], pixels, steps=2)
    applied = host.apply_identity(loaded[0], read)
    assert relative_l2(host.restore(applied, loaded[2], pixels, steps=2), base) > 1e-4


def pictures_of(sheet: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns LQ, now and clean of a report."""
    return sheet[:, :128, :128], sheet[:, :128, 128:], sheet[:, 128:, 128:]


def test_reports_tell_stages_losses_time_and_sheets(whole) -> None:
    _, reports = whole
    views = [r for r in reports if r.stage == "views"]
    assert views and all(r.total == 6 and r.loss is None for r in views)
    assert reports.index(views[-1]) < min(k for k, r in enumerate(reports) if r.stage == "training")
    assert steps_of(reports) == [1, 2, 3, 4]
    steps = [r for r in reports if r.stage == "training"]
    assert all(r.total == 4 and r.loss is not None and r.loss > 0 for r in steps)
    left = [r.seconds_left for r in steps if r.sheet is None]
    assert left[0] is None and all(x is not None and x >= 0 for x in left[1:]) and left[-1] == 0
    sheets = [r for r in steps if r.sheet is not None]
    assert [r.done for r in sheets] == [2, 4]
    for report in sheets:
        assert report.sheet.shape == (3, 2 * 128, 2 * 128)
        assert 0 <= report.sheet.min() and report.sheet.max() <= 1
    (lq0, now0, clean0), (lq, now, clean) = (pictures_of(report.sheet) for report in sheets)
    assert torch.equal(clean, clean0) and torch.equal(lq, lq0), "the same photo each time"
    assert not torch.equal(now, now0)
    assert relative_l2(lq, clean) > 0.02


def test_the_last_sheet_is_drawn_without_previews(loaded, photos) -> None:
    reports: list[TrainingProgress] = []
    train(loaded, photos, config={"preview_every": 0, "steps": 2}, on_progress=reports.append)
    assert [r.done for r in reports if r.sheet is not None] == [2]


def test_the_base_stays_as_it_is(loaded, photos) -> None:
    """Also as ComfyUI runs its nodes, under inference mode; what comes in is left alone too."""
    model, _, vae = loaded
    with torch.inference_mode():
        inputs = [photo.clone() for photo in photos]
        parts = [
            model.model,
            vae.first_stage_model,
            *(p.model for p in model.get_additional_models()),
        ]
        before = [hash_of(part) for part in parts]
        options = repr(model.model_options), repr(model.wrappers), repr(model.attachments)
        assert not torch.is_grad_enabled()
        adapter = train(loaded, inputs)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert [hash_of(part) for part in parts] == before
        assert options == (
            repr(model.model_options),
            repr(model.wrappers),
            repr(model.attachments),
        )
        assert all(torch.equal(a, b) for a, b in zip(inputs, photos, strict=True))
        applied = host.apply_identity(model, adapter)
        assert host.restore(applied, vae, image(), steps=1).isfinite().all()
        mixed = [p for part in parts for p in part.parameters() if p.grad is not None]
        assert not mixed, "no gradient is left behind"


def test_the_seed_decides_and_nothing_else(loaded, photos, whole) -> None:
    torch.manual_seed(123)
    again = train(loaded, photos, name="Another name")
    assert same(again, whole[0])
    assert not same(train(loaded, photos, config={"seed": 1}), whole[0])


@pytest.mark.parametrize("step", [1, 3, 4])
def test_law_4_an_interrupted_run_goes_on_to_the_same_end(
    loaded, photos, whole, tmp_path: Path, step: int
) -> None:
    folder, unfinished = tmp_path / "runs", tmp_path / "unfinished" / "ada.safetensors"
    places = {"folder": folder, "unfinished": unfinished, "name": "Ada"}
    first: list[TrainingProgress] = []
    with pytest.raises(Interruption):
        train(loaded, photos, on_progress=stop_at(step, first), **places)
    assert {p.name for run in folder.iterdir() for p in run.iterdir()} == {"state", "lock"}
    (kept,) = unfinished.parent.iterdir()
    assert kept.name.startswith("ada-"), "two unfinished people of one name stay apart"
    partial = IdentityAdapter.load(kept)
    done = partial.info.steps  # a GPU is asked for the steps now and then only
    assert done == step or (args.cpu is False and step < done <= 4)
    assert (partial.info.name, partial.info.photos) == ("Ada", 3)
    applied = host.apply_identity(loaded[0], partial)
    assert host.restore(applied, loaded[2], image(), steps=1).isfinite().all()
    if step > 1:  # at a learning rate of zero, the first step of a warm-up changes nothing
        assert any(partial.block(site).out.weight.any() for site in partial.sites)

    rest: list[TrainingProgress] = []
    adapter = train(loaded, photos, on_progress=rest.append, **places)
    assert same(adapter, whole[0])
    assert adapter.info == whole[0].info
    assert steps_of(rest) == list(range(done + 1, 5))
    sheets = [[r.sheet for r in reports if r.sheet is not None] for reports in (rest, whole[1])]
    assert torch.equal(sheets[0][-1], sheets[1][-1]), "the loss curve goes on as well"
    assert not kept.exists()

    again: list[TrainingProgress] = []
    shown = train(loaded, photos, on_progress=again.append, **places)
    assert steps_of(again) == [] and same(shown, whole[0]), "it is kept until it could be saved"
    sheets = [[r.sheet for r in reports if r.sheet is not None] for reports in (again, whole[1])]
    assert torch.equal(sheets[0][-1], sheets[1][-1])
    train(loaded, photos, config={"seed": 1}, **places)
    assert len(list(folder.iterdir())) == 1, "another run takes its place"


def test_an_interruption_before_the_first_step_leaves_nothing(loaded, photos, tmp_path) -> None:
    def stop(progress: TrainingProgress) -> None:
        raise Interruption

    unfinished = tmp_path / "ada.safetensors"
    with pytest.raises(Interruption):
        train(loaded, photos, on_progress=stop, folder=tmp_path / "runs", unfinished=unfinished)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("state"))


def test_an_adapter_that_cannot_be_kept_does_not_hide_the_interruption(
    loaded, photos, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Interruption):
        train(
            loaded,
            photos,
            on_progress=stop_at(1, []),
            unfinished=tmp_path / "file" / "ada.safetensors",
        )
    assert "could not be written" in caplog.text


def test_only_the_same_run_is_taken_up(loaded, photos, tmp_path: Path) -> None:
    def begin(pictures: list[Tensor], at: int = 2, **config: Any) -> list[int]:
        reports: list[TrainingProgress] = []
        with pytest.raises(Interruption):
            train(
                loaded,
                pictures,
                config=config,
                folder=tmp_path,
                on_progress=stop_at(at, reports),
            )
        return steps_of(reports)

    assert begin(photos) == [1, 2]
    other = [photos[0].clone(), photos[1]]
    other[0][0, 3, 3, 0] += 0.1
    for pictures, config in (
        (photos, {"seed": 5}),
        (photos, {"learning_rate": 1e-3}),
        (photos, {"steps": 7}),
        (photos, {"tokens": 8}),
        (photos[:1], {}),
        (photos[::-1], {}),
        (other, {}),
    ):
        assert begin(pictures, **config) == [1, 2], config
    assert len(list(tmp_path.iterdir())) == 8
    assert begin(photos, at=4, preview_every=3) == [3, 4], "previews are no part of the run"
    assert len(list(tmp_path.iterdir())) == 8


def test_photos_of_any_kind_and_size(loaded, photos, whole) -> None:
    alpha = [torch.cat([p, torch.rand_like(p[..., :1])], -1) for p in photos]
    assert same(train(loaded, alpha), whole[0]), "alpha is left out"
    single = [photo[k : k + 1] for photo in photos for k in range(len(photo))]
    assert same(train(loaded, single), whole[0]), "a list of single photos is the same"
    grey = [photo[..., :1] for photo in photos]
    as_rgb = [photo.expand(-1, -1, -1, 3) for photo in grey]
    config = {"steps": 2}
    assert same(train(loaded, grey, config=config), train(loaded, as_rgb, config=config))


def test_warnings_reach_the_user(loaded, photos) -> None:
    found: list[str] = []
    train(loaded, photos[1:], config={"steps": 1}, on_warning=found.append)
    assert any("1" in sentence and "photo" in sentence for sentence in found)


@pytest.mark.parametrize(
    "settings",
    [
        {"regularizer_weight": 0.0},
        {"reference_probability": 0.0},
        {"tokens": 0},
        {"learned_gamma": False},
    ],
    ids=lambda s: next(iter(s)),
)
def test_each_part_can_be_left_out(loaded, photos, settings: dict) -> None:
    adapter = train(loaded, photos, config={**settings, "steps": 3, "preview_every": 0})
    gammas = [adapter.block(site).gamma.weight for site in adapter.sites]
    assert all((g == 1).all() for g in gammas) is ("learned_gamma" in settings)
    assert (adapter.block(adapter.sites[0]).tokens is None) is ("tokens" in settings)
    learned = [adapter.block(s).reference_to_key_value.bias.any() for s in adapter.sites]
    assert any(learned) is ("reference_probability" not in settings)


def test_half_precision_and_back(loaded, photos, whole) -> None:
    """accelerate's settings do not outlive a run."""
    half = train(loaded, photos, config={"mixed_precision": "bf16"})
    assert not same(half, whole[0])
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    key = "blocks.middle_block_2.out.weight"
    assert relative_l2(half.state_dict()[key], whole[0].state_dict()[key]) < 1
    assert same(train(loaded, photos), whole[0])


def network_of(
    model: Any, adapter: IdentityAdapter, *, checkpoint: bool = False
) -> PersonalizedNetwork:
    (wrapper,) = model.get_wrappers("diffusion_model", RESTORER_KEY)
    return PersonalizedNetwork(
        trainable_unet(model),
        BaseRestorer.from_state_dict(wrapper.restorer.weights()),
        base_of(model).empty_prompt[0][0][0].clone(),
        adapter,
        checkpoint=checkpoint,
    )


def test_an_adapter_learns_its_person() -> None:
    """On the mini restorer: lower loss on views and noise that it never saw, in both halves."""
    model, _, vae = host.load_base_restorer(MINI_RESTORER_PATH)
    config = IdentityTrainingConfig(
        steps=40, batch=2, views_per_photo=6, preview_every=0, mixed_precision="no", size=64
    )
    pictures = portrait_set(PERSON, 4, seed=0, size=96)
    adapter = host.train_identity(model, vae, [pictures.movedim(1, -1)], config)
    unseen = portrait_set(PERSON, 3, seed=9, size=96)
    pool = build_photo_pool(
        list(unseen),
        64,
        scaled_encoder(model, vae),
        dataclasses.replace(config, seed=7),
    )
    objective = identity_objective(
        pool, noise_schedule("v_prediction"), dataclasses.replace(config, batch=8)
    )

    def losses(adapter: IdentityAdapter) -> torch.Tensor:
        network = network_of(model, adapter)
        with torch.no_grad():
            found = [objective(network, step_generator(99, k, 0))[1] for k in range(6)]
        return torch.tensor([[float(f["restore"]), float(f["generate"])] for f in found])

    trained, fresh = losses(adapter), losses(IdentityAdapter.initialise(adapter.info))
    print("trained / untrained, restore and generate:", (trained.sum(0) / fresh.sum(0)).tolist())
    assert trained[:, 0].sum() < fresh[:, 0].sum()
    # the noise is the same for both; by chance all six would be lower in one of 64 cases
    assert (trained[:, 1] < fresh[:, 1]).all()


class TestRefusals:
    def test_a_model_without_restorer(self, loaded, photos) -> None:
        raw, _, vae = load_bundled(loaded[0].cached_patcher_init[1][0])
        with pytest.raises(PFStorerError, match="has no restorer; connect the MODEL that 'Load"):
            train((raw, None, vae), photos)

    @pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 2), (1, 3, 64, 64)])
    def test_what_is_no_image(self, loaded, shape: tuple[int, ...]) -> None:
        with pytest.raises(PFStorerError, match=r"Photos have the shape .*expected \(batch,"):
            train(loaded, [torch.rand(shape)])

    def test_no_photo(self, loaded) -> None:
        with pytest.raises(PFStorerError, match="no photo"):
            train(loaded, [])

    def test_small_photos_are_named_by_their_number(self, loaded, photos) -> None:
        with pytest.raises(PFStorerError, match=r"[Pp]hoto 4"):
            train(loaded, [*photos, torch.rand(1, 8, 8, 3)])

    def test_settings_that_the_loop_refuses(self, loaded, photos) -> None:
        with pytest.raises(PFStorerError, match="expected one of adamw, muon"):
            train(loaded, photos, config={"optimizer": "sgd"})
        with pytest.raises(PFStorerError, match="tokens is -1"):
            train(loaded, photos, config={"tokens": -1})


def test_weights_of_inference_mode_can_be_trained_on(tmp_path: Path, photos) -> None:
    """As in a node; a VAE of Stable Diffusion also has weights that ask for gradients."""
    with torch.inference_mode():
        loaded = host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))
        loaded[2].first_stage_model.requires_grad_(True)
        adapter = train(loaded, photos)
    assert any(adapter.block(site).out.weight.any() for site in adapter.sites)


def test_weights_that_move_meanwhile_can_be_used_by_the_next_node(
    tmp_path: Path, photos, monkeypatch
) -> None:
    """A GPU gets the VAE's weights when it is used, in the training too."""

    def moved(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()  # as between devices

    with torch.inference_mode():
        model, clip, vae = host.load_base_restorer(write_bundled(tmp_path / "tiny.safetensors"))
        monkeypatch.setattr(mm, "unload_all_models", lambda: moved(model.model))
        for part in vae.first_stage_model.children():
            part.register_forward_pre_hook(moved)
        adapter = train((model, clip, vae), photos)
        applied = host.apply_identity(model, adapter)
        assert host.restore(applied, vae, image(), steps=1).isfinite().all()


def test_views_are_of_a_size_that_the_unet_takes(loaded, photos) -> None:
    with pytest.raises(PFStorerError, match="size is 36 pixels; choose a multiple of 8"):
        train(loaded, photos, config={"size": 36})


def test_a_lora_on_the_model_is_mentioned_and_left_out(loaded, photos, whole) -> None:
    model = loaded[0].clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    weight = model.model.state_dict()[key]
    assert model.add_patches({key: ("diff", (torch.ones_like(weight),))}), "the host knows the key"
    said: list[str] = []
    adapter = train((model, *loaded[1:]), photos, on_warning=said.append)
    assert any("carries a LoRA" in sentence for sentence in said)
    assert same(adapter, whole[0])


@pytest.mark.parametrize(
    ("kind", "bf16", "fp16", "expected", "told"),
    [
        ("cuda", True, True, "bf16", False),
        ("cuda", False, True, "fp16", False),  # Turing; AMD's RDNA 2
        ("cuda", False, False, "no", True),  # Pascal
        ("xpu", True, True, "bf16", False),
        ("xpu", False, True, "no", True),
        ("mps", True, True, "bf16", False),
        ("mps", False, True, "no", True),
        ("privateuseone", False, False, "no", True),  # DirectML
    ],
)
def test_the_precision_is_what_the_host_knows_of_the_device(
    kind: str, bf16: bool, fp16: bool, expected: str, told: bool, monkeypatch
) -> None:
    monkeypatch.setattr(mm, "should_use_bf16", lambda device: bf16)
    monkeypatch.setattr(mm, "should_use_fp16", lambda device: fp16)
    warnings: list[str] = []
    assert _precision("auto", torch.device(kind), warnings.append) == expected
    assert len(warnings) == told
    assert _precision("fp16", torch.device(kind), warnings.append) == "fp16"
