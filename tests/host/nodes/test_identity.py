"""The nodes of identity adapters in this process, as ComfyUI's loader made them."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from golden_weights import relative_l2
from loaded_pack import BUNDLED, RESTORE
from tiny_models import image, random_adapter, write_bundled

from pfstorer_core import host

RESTORER = "tiny_identity_nodes.safetensors"
APPLY = {"gamma": 1.0, "start": 0.0, "end": 1.0}
TRAIN = {
    "name": "Ada",
    "preset": "quick",
    "seed": 0,
    "steps": 2,
    "views_per_photo": 2,
    "batch": 1,
    "learning_rate": 1e-3,
    "regularizer": 1.0,
    "reference_share": 0.5,
    "tokens": 4,
    "size": 32,
    "precision": "no",
    "checkpointing": False,
    "preview_every": 0,
}


@pytest.fixture(scope="module")
def loaded(pack: Any, base_directory: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the pack's loader."""
    write_bundled(base_directory / "models" / "pfstorer_restorers" / RESTORER)
    return pack.node("PFStorerLoadBaseRestorer").execute(RESTORER, BUNDLED).args


@pytest.fixture(scope="module")
def folder(pack: Any, base_directory: Path) -> Path:
    """Where identities lie."""
    return base_directory / "models" / "pfstorer_identities"


@pytest.fixture(scope="module")
def adapter(pack: Any, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An adapter of random weights, of the pack's own class."""
    path = tmp_path_factory.mktemp("adapters") / "ada.safetensors"
    file = write_bundled(path.with_name("restorer.safetensors"))
    random_adapter(host.load_base_restorer(file)[0], 1).save(path)
    return pack.module("pfstorer_core.identities.adapter").IdentityAdapter.load(path)


def save(pack: Any, adapter: Any, name: str, overwrite: bool = False) -> str:
    return pack.node("PFStorerSaveIdentity").execute(adapter, name, overwrite).args[0]


def apply(pack: Any, model: Any, adapter: Any, **settings: Any) -> Any:
    node = pack.node("PFStorerApplyPersonalization")
    assert node.INPUT_IS_LIST
    lists = {name: [value] for name, value in {**APPLY, **settings}.items() if value is not None}
    (applied,) = node.execute(model=[model], adapter=[adapter], **lists).args[0]
    return applied


def restore(pack: Any, model: Any, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    settings = {**RESTORE, "color_fix": "none"}
    return pack.node("PFStorerTiledRestore").execute(model, vae, pixels, **settings).args[0]


def train(pack: Any, loaded: Any, photos: list[torch.Tensor], **settings: Any) -> Any:
    """Runs the node as ComfyUI does: every input a list."""
    node = pack.node("PFStorerTrainIdentityAdapter")
    assert node.INPUT_IS_LIST
    lists = {name: [value] for name, value in {**TRAIN, **settings}.items()}
    with torch.inference_mode():
        found = node.execute(model=[loaded[0]], vae=[loaded[2]], photos=photos, **lists).args
    return tuple(value for (value,) in found)


def inputs_of(node: Any) -> dict[str, Any]:
    return {entry.id: entry for entry in node.define_schema().inputs}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_from_photos_to_a_restored_person(pack: Any, loaded: Any, folder: Path) -> None:
    (photos,) = pack.node("PFStorerDemoPortrait").execute(1_000_003, 3, 0, 96, "none").args
    before = files(folder)
    adapter, report = train(pack, loaded, [photos[:2], photos[2:, :80]])
    assert report.shape == (1, 256, 256, 3)
    assert 0 <= report.min() and report.max() <= 1
    assert (adapter.info.name, adapter.info.photos, adapter.info.steps) == ("Ada", 3, 2)
    assert adapter.info.config.tokens == 4
    training = pack.module("pfstorer_core.host.load.folders").training_folder()
    assert files(folder) == before
    assert len(files(training)) == 3, "the complete run: its state, a mark and its lock"
    name = save(pack, adapter, "family/Ada")
    assert name == "family/Ada.safetensors" and (folder / name).is_file()
    (read,) = pack.node("PFStorerLoadIdentity").execute(name).args
    assert read.info.name == "Ada"
    model, _, vae = loaded
    pixels = image((40, 48))
    plain = restore(pack, model, vae, pixels)
    restored = restore(pack, apply(pack, model, read), vae, pixels)
    assert restored.shape == plain.shape and not torch.equal(restored, plain)


def test_zero_means_the_presets_number(pack: Any) -> None:
    node = pack.node("PFStorerTrainIdentityAdapter")
    presets = pack.module("pfstorer_core.training.identity").PRESETS
    entries = inputs_of(node)
    assert list(entries["preset"].options) == list(presets)
    assert entries["steps"].default == entries["views_per_photo"].default == 0
    standard = presets["standard"]
    for entry, value in {
        "batch": standard.batch,
        "learning_rate": standard.learning_rate,
        "regularizer": standard.regularizer_weight,
        "reference_share": standard.reference_probability,
        "tokens": standard.tokens,
        "precision": standard.mixed_precision,
    }.items():
        assert entries[entry].default == value
        assert all(
            getattr(preset, field) == value
            for preset in presets.values()
            for field in dataclasses.asdict(preset)
            if field == entry
        ), "the widget's default must not change another preset"


def test_an_interrupted_training_is_kept_and_goes_on(pack: Any, loaded: Any, folder: Path) -> None:
    import comfy.model_management as mm

    photos = [image((64, 64), 3, seed=2)]
    settings = {"name": "Stopped", "steps": 16, "seed": 11}
    progress = pack.module("pfstorer_core.host.feedback")
    training = pack.module("pfstorer_core.host.load.folders").training_folder()
    whole, _ = train(pack, loaded, photos, **settings)
    shutil.rmtree(training)

    bar = progress.comfy.utils
    steps: list[int] = []
    stopped: list[int] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        if total == settings["steps"]:
            steps.append(value)
            if value >= 2 and not stopped:  # the host leaves some steps out
                stopped.append(value)
                mm.interrupt_current_processing()

    bar.set_progress_bar_global_hook(hook)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            train(pack, loaded, photos, **settings)
        assert steps[-1] < 16
        (kept,) = (folder / "unfinished").glob("Stopped-*.safetensors")
        (partial,) = pack.node("PFStorerLoadIdentity").execute(f"unfinished/{kept.name}").args
        assert 2 <= partial.info.steps < 16
        assert len(files(training)) == 2
        begun = len(steps)
        again, _ = train(pack, loaded, photos, **settings)
        assert steps[begun] == partial.info.steps + 1, "it goes on where it stopped"
    finally:
        bar.set_progress_bar_global_hook(None)
    for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not kept.exists()


def test_applying_covers_mask_window_references_and_chains(
    pack: Any, loaded: Any, adapter: Any
) -> None:
    model, _, vae = loaded
    pixels = image((40, 48))
    plain = restore(pack, model, vae, pixels)
    photos = image((64, 48), 2, seed=4)
    results = [
        restore(pack, applied, vae, pixels)
        for applied in (
            apply(pack, model, adapter),
            apply(pack, model, adapter, gamma=0.5),
            apply(pack, model, adapter, end=0.5),
            apply(pack, model, adapter, mask=torch.eye(48)[None, :40]),
            apply(pack, model, adapter, references=photos, vae=vae),
            apply(pack, apply(pack, model, adapter, gamma=0.5), adapter, gamma=2.0),
        )
    ]
    for k, result in enumerate(results):
        assert relative_l2(result, plain) > 1e-3, k
        assert all(relative_l2(result, other) > 1e-4 for other in results[:k]), k
    assert torch.equal(restore(pack, apply(pack, model, adapter, gamma=0.0), vae, pixels), plain)
    assert torch.equal(restore(pack, model, vae, pixels), plain)


def test_references_of_any_channels(pack: Any, loaded: Any, adapter: Any) -> None:
    model, _, vae = loaded
    pixels, grey = image((40, 48)), image((64, 48), 1, seed=4)[..., :1]
    results = [
        restore(pack, apply(pack, model, adapter, references=photos, vae=vae), vae, pixels)
        for photos in (grey, grey.expand(-1, -1, -1, 3), grey.expand(-1, -1, -1, 4))
    ]
    # scaling sums in another order where channels lie elsewhere in memory
    assert all(relative_l2(other, results[0]) < 1e-5 for other in results[1:])
    with pytest.raises(ValueError, match="without a VAE; connect the VAE of 'Load Base Restorer'"):
        apply(pack, model, adapter, references=grey)


class TestNames:
    """Files of identities cannot leave their folder, and their names work on every system."""

    @pytest.mark.parametrize(
        "name",
        [
            "",
            " ",
            ".",
            "..",
            "../ada",
            "..\\ada",
            "a/../../ada",
            "a\\..\\..\\ada",
            "/ada",
            "\\ada",
            "\\\\server\\share\\ada",
            "C:\\ada",
            "C:ada",
            "a//b",
            "ada/",
            "a/./b",
            "~/../x",
            "ada ",
            " ada",
            "ada.",
            "a./b",
            "ada\n",
            "a\0b",
            "ada\u202etxt",
            "\ud800",
            'say "ada"',
            "ada?",
            "a|b",
            "<ada>",
            "CON",
            "con",
            "nul.txt",
            "a/LPT1",
            "COM9.safetensors",
            "aux.safetensors",
            "x" * 300,
            "é" * 150,
            ".safetensors",
        ],
        ids=ascii,
    )
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_bad_names_are_refused_with_a_sentence(
        self, pack: Any, adapter: Any, folder: Path, name: str, overwrite: bool
    ) -> None:
        before = files(folder.parent)
        with pytest.raises(ValueError, match="cannot be the name of an identity; use letters"):
            save(pack, adapter, name, overwrite)
        assert files(folder.parent) == before

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("Zoë", "Zoë.safetensors"),
            ("小林 さくら", "小林 さくら.safetensors"),
            ("Dr. A-b_c (2)", "Dr. A-b_c (2).safetensors"),
            ("people/young/Ann", "people/young/Ann.safetensors"),
            ("people\\old\\Ann", "people/old/Ann.safetensors"),
            ("Eve.safetensors", "Eve.safetensors"),
            ("console", "console.safetensors"),
            ("..hidden", "..hidden.safetensors"),
            ("v1.2", "v1.2.safetensors"),
            ("~", "~.safetensors"),
        ],
    )
    def test_good_names_are_kept_and_listed(
        self, pack: Any, adapter: Any, folder: Path, name: str, file: str
    ) -> None:
        assert save(pack, adapter, name) == file
        assert (folder / file).is_file()
        node = pack.node("PFStorerLoadIdentity")
        assert file in {x.replace(os.sep, "/") for x in inputs_of(node)["file_name"].options}
        assert node.execute(file).args[0].info == adapter.info

    def test_a_name_that_exists_gets_a_number_or_is_replaced(
        self, pack: Any, adapter: Any, folder: Path
    ) -> None:
        names = [save(pack, adapter, "twin") for _ in range(3)]
        assert names == ["twin.safetensors", "twin_2.safetensors", "twin_3.safetensors"]
        other = pack.module("pfstorer_core.identities.adapter").IdentityAdapter.initialise(
            dataclasses.replace(adapter.info, name="Other")
        )
        assert save(pack, other, "twin", overwrite=True) == "twin.safetensors"
        read = [pack.node("PFStorerLoadIdentity").execute(n).args[0].info.name for n in names]
        assert read == ["Other", "Ada", "Ada"]

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_a_link_out_of_the_folder_is_not_followed(
        self, pack: Any, adapter: Any, folder: Path, tmp_path: Path
    ) -> None:
        (folder / "away").symlink_to(tmp_path, target_is_directory=True)
        try:
            with pytest.raises(ValueError, match="'away/ada' leads out of the folder"):
                save(pack, adapter, "away/ada")
            assert not list(tmp_path.iterdir())
        finally:
            (folder / "away").unlink()

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_a_file_that_is_a_link_is_replaced_and_not_written_through(
        self, pack: Any, adapter: Any, folder: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "theirs.safetensors"
        target.write_text("theirs")
        (folder / "linked.safetensors").symlink_to(target)
        assert save(pack, adapter, "linked") == "linked_2.safetensors"
        assert save(pack, adapter, "linked", overwrite=True) == "linked.safetensors"
        assert not (folder / "linked.safetensors").is_symlink()
        assert target.read_text() == "theirs"

    @pytest.mark.parametrize("name", ["", "../ada", "NUL", "a:b"])
    def test_a_persons_name_is_checked_before_the_training(
        self, pack: Any, loaded: Any, name: str
    ) -> None:
        with pytest.raises(ValueError, match="cannot be the name of an identity"):
            train(pack, loaded, [], name=name)

    @pytest.mark.parametrize("name", ["gone.safetensors", "../pfstorer_restorers/" + RESTORER])
    def test_loading_stays_in_the_folder_too(self, pack: Any, loaded: Any, name: str) -> None:
        with pytest.raises(ValueError, match=r"There is no identity adapter .*; put the file into"):
            pack.node("PFStorerLoadIdentity").execute(name)


def test_other_files_in_the_folder_are_refused(pack: Any, loaded: Any, folder: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "stray.safetensors")
    with pytest.raises(ValueError, match=r"'stray.safetensors' is no identity adapter; choose"):
        pack.node("PFStorerLoadIdentity").execute("stray.safetensors")


def test_a_changed_file_is_read_again(pack: Any, adapter: Any, folder: Path) -> None:
    name = save(pack, adapter, "changing")
    node = pack.node("PFStorerLoadIdentity")
    before = node.fingerprint_inputs(name)
    assert node.fingerprint_inputs(name) == before
    stat = (folder / name).stat()
    os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert node.fingerprint_inputs(name) != before


def test_an_adapter_of_another_base_is_refused(pack: Any, loaded: Any, adapter: Any) -> None:
    info = dataclasses.replace(adapter.info, base_name="studio", base_fingerprint="f" * 64)
    other = pack.module("pfstorer_core.identities.adapter").IdentityAdapter.initialise(info)
    with pytest.raises(ValueError, match=r"trained on restorer 'studio' .* MODEL has .*'tiny'"):
        apply(pack, loaded[0], other)


def test_automatic_gamma_takes_the_place_of_the_widget(pack, loaded, adapter) -> None:
    model, _, vae = loaded
    blurred = torch.linspace(0, 1, 64)[:, None, None].expand(64, 64, 3)[None]  # (1, 64, 64, 3)

    def restored(gamma: float, **settings: Any) -> tuple[torch.Tensor, str]:
        applied = apply(pack, model, adapter, gamma=gamma, **settings)
        node = pack.node("PFStorerTiledRestore")
        image, report = node.execute(applied, vae, blurred, **RESTORE).args
        return image, report

    by_hand, _ = restored(1.0)
    automatic, report = restored(0.3, auto_gamma=True)
    assert "gamma 1.00 (automatic)" in report
    assert torch.allclose(automatic, by_hand, atol=1e-5)
    assert not torch.allclose(restored(0.3, auto_gamma=False)[0], by_hand, atol=1e-4)
