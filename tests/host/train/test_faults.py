"""Trainings whose memory, disk or numbers fail: one sentence, and nothing that was learned is lost.

The hooks are PyTorch's own, and raise where a real GPU does.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.memory import Shortage
from faults.small import TRAINING, Stopped, at_step, hooked, photos, restored, same, stop, train
from tiny_models import write_bundled
from torch import Tensor, nn

from pfstorer_core import host
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.feedback import TrainingProgress
from pfstorer_core.host.images import encode_lq, encode_references
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.block import PersonalizationBlock
from pfstorer_core.training.runs import COMPLETE, STATE_SIZE, Run

BLOCKS = 7  # personalization blocks of the tiny UNet, each run once in a step


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MODEL, CLIP and VAE."""
    path = tmp_path_factory.mktemp("restorers") / "tiny.safetensors"
    return host.load_base_restorer(write_bundled(path))


@pytest.fixture(scope="module")
def whole(loaded: Any) -> IdentityAdapter:
    """The adapter of an undisturbed run."""
    adapter = train(loaded)
    assert len(adapter.sites) == BLOCKS
    return adapter


@contextmanager
def without_memory(meets: Callable[[nn.Module], bool], first: int = 1) -> Iterator[None]:
    """Lets memory run out at the forward of some modules."""
    shortage = Shortage(meets, first)
    with hooked(shortage):
        yield
    assert shortage.seen >= first, "memory never ran out"


def trained(module: nn.Module) -> bool:
    return isinstance(module, PersonalizationBlock) and torch.is_grad_enabled()


def test_no_memory_for_the_views(loaded: Any) -> None:
    encoder = loaded[2].first_stage_model.encoder
    with (
        without_memory(lambda m: m is encoder),
        pytest.raises(PFStorerError, match=r"Out of memory while views .* at 32 px; lower size"),
    ):
        train(loaded)


def test_no_memory_in_a_step_keeps_what_was_learned(
    loaded: Any, whole: IdentityAdapter, tmp_path: Path
) -> None:
    before = restored(loaded)
    places = {"folder": tmp_path / "runs", "unfinished": tmp_path / "unfinished.safetensors"}
    with (
        without_memory(trained, 2 * BLOCKS + 1),
        pytest.raises(PFStorerError, match=r"batch 2 at 32 px; switch checkpointing on, .* lower"),
    ):
        train(loaded, **places)
    (kept,) = tmp_path.glob("unfinished-*.safetensors")
    assert IdentityAdapter.load(kept).info.steps == 2
    assert torch.equal(restored(loaded), before)
    steps: list[TrainingProgress] = []
    again = train(loaded, steps.append, config={"checkpointing": True}, **places)
    assert min(p.done for p in steps if p.stage == "training") == 3, "it goes on with checkpointing"
    assert same(again, whole)
    assert not kept.exists()


def test_no_memory_with_checkpointing_has_other_advice(loaded: Any) -> None:
    with (
        without_memory(trained),
        pytest.raises(PFStorerError, match=r"at 32 px; lower batch or size, with which it begins"),
    ):
        train(loaded, config={"checkpointing": True})


def test_no_memory_for_the_preview_leaves_it_out(loaded: Any, whole: IdentityAdapter) -> None:
    decoder = loaded[2].first_stage_model.decoder
    reports: list[TrainingProgress] = []
    told: list[str] = []
    with without_memory(lambda m: m is decoder):
        adapter = train(loaded, reports.append, on_warning=told.append)
    assert same(adapter, whole)
    assert told.count("Out of memory in the preview, which is left out; the training goes on.") == 1
    sheet = [r.sheet for r in reports if r.sheet is not None][-1]
    assert (sheet[:, :128, 128:] == 0.5).all(), "grey in place of the picture of now"


@pytest.mark.parametrize("call", ["lq", "references"])
def test_no_memory_for_encoding(loaded: Any, call: str) -> None:
    model, _, vae = loaded
    with (
        without_memory(lambda m: m is vae.first_stage_model.encoder),
        pytest.raises(PFStorerError, match=r"Out of memory while the VAE encodes .*--cpu-vae\.$"),
        torch.inference_mode(),
    ):
        encode_lq(model, vae, photos()[0]) if call == "lq" else encode_references(
            model, vae, photos()
        )


def test_a_folder_for_states_is_tried_before_the_work(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reports: list[TrainingProgress] = []
    with pytest.raises(PFStorerError, match=r"Nothing can be written to '.*file' "):
        train(loaded, reports.append, folder=tmp_path / "file")
    assert not reports


def test_room_is_asked_for_what_a_run_will_still_write(tmp_path: Path) -> None:
    lacking = 2**29  # bytes, more than other programs free meanwhile
    weights = (shutil.disk_usage(tmp_path).free + lacking) // STATE_SIZE
    run = tmp_path / "key"

    def begin() -> None:
        with Run(tmp_path, None, "key").opened(weights):
            raise InterruptedError

    with pytest.raises(PFStorerError, match=r"MiB of free space, but \d+ MiB are needed"):
        begin()
    with (run / "state").open("wb") as file:
        file.truncate(2 * lacking)  # takes no room where files may have holes
    with pytest.raises(InterruptedError):
        begin()
    (run / "state").unlink()
    (run / COMPLETE).touch()
    with pytest.raises(InterruptedError):
        begin()


def test_a_folder_for_adapters_that_cannot_be_written_is_told_before(
    loaded: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    with pytest.raises(Stopped):
        train(
            loaded,
            lambda progress: stop(),
            unfinished=tmp_path / "file" / "ada.safetensors",
            on_warning=told.append,
        )
    assert any("Nothing can be written" in x and "cannot be saved" in x for x in told)


def test_a_state_that_cannot_be_saved_does_not_cost_the_training(
    loaded: Any, whole: IdentityAdapter, tmp_path: Path
) -> None:
    def block() -> None:
        (run,) = (tmp_path / "runs").iterdir()
        shutil.rmtree(run)
        run.write_text("in the way")

    told: list[str] = []
    adapter = train(loaded, at_step(2, block), folder=tmp_path / "runs", on_warning=told.append)
    assert same(adapter, whole)
    assert sum("could not be written" in sentence for sentence in told) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_photos_that_are_not_finite_are_named(loaded: Any, value: float) -> None:
    pictures = [photo.clone() for photo in photos()]
    pictures[0][1, 5, 5, 0] = value
    with pytest.raises(PFStorerError, match=r"Photo 2 has values "):
        host.train_identity(loaded[0], loaded[2], pictures, TRAINING)


def test_a_vae_that_gives_nan_is_told_from_a_training_that_diverges(loaded: Any) -> None:
    network = loaded[2].first_stage_model

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * float("nan")

    handle = network.encoder.register_forward_hook(spoil)
    try:
        with pytest.raises(PFStorerError, match=r"NaN or infinite latents for photo 1; .*fp32-vae"):
            train(loaded)
    finally:
        handle.remove()
