"""The workflow of an archive: what is taken, and what is changed in it."""

import json
from pathlib import Path

import pytest
from archiving.host import ADAPTERS, TRIMMING, link_base
from archiving.workflow import PEOPLE, Workflow, read_workflow, settings_digest, with_identities
from comfyui_server import PACK
from setup_host import REPO

from pfstorer_core.errors import PFStorerError

API = REPO / "example_workflows" / "api"


def written(path: Path, prompt: object) -> Path:
    path.write_text(json.dumps(prompt), encoding="utf-8")
    return path


def test_the_photo_comes_in_and_the_result_goes_out() -> None:
    workflow = read_workflow(API / "archive.json")
    prompt = workflow.of("7.png")
    assert prompt["2"]["inputs"]["image"] == "7.png"
    assert prompt["4"]["class_type"] == "PreviewImage"
    assert prompt["4"]["inputs"] == {"images": ["3", 0]}
    assert workflow.prompt["2"]["inputs"]["image"] == "photo.png", "it is not changed"


@pytest.mark.parametrize("node", ["3", "PFStorerTiledRestore", "Tiled Restore"])
def test_inputs_are_set(node: str) -> None:
    changes = [f"{node}.steps=3", f"{node}.color_fix=adain", f"{node}.masked_only=true"]
    inputs = read_workflow(API / "archive.json", changes).prompt["3"]["inputs"]
    assert (inputs["steps"], inputs["color_fix"], inputs["masked_only"]) == (3, "adain", True)


@pytest.mark.parametrize("change", ["steps=3", "3.step=3", "7.steps=3", "3.steps", "3.steps:3"])
def test_what_cannot_be_set_is_told_with_what_can(change: str) -> None:
    with pytest.raises(PFStorerError, match=r"--set .* names no input .* 3\.steps"):
        read_workflow(API / "archive.json", [change])


def test_what_is_no_workflow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello", encoding="utf-8")
    for path in (tmp_path / "text.json", tmp_path / "nothing.json"):
        with pytest.raises(PFStorerError, match="cannot be read as a workflow"):
            read_workflow(path)
    of_the_page = REPO / "example_workflows" / "restore_photo.json"
    for path in (of_the_page, written(tmp_path / "list.json", [1])):
        with pytest.raises(PFStorerError, match="Export"):
            read_workflow(path)
    with pytest.raises(PFStorerError, match="has 0 nodes LoadImage"):
        read_workflow(API / "restore_photo.json")
    prompt = json.loads((API / "archive.json").read_text(encoding="utf-8"))
    prompt["5"] = prompt["4"]
    with pytest.raises(PFStorerError, match="has 2 nodes SaveImage"):
        read_workflow(written(tmp_path / "two.json", prompt))


def test_the_digest_names_what_the_result_depends_on() -> None:
    workflow = read_workflow(API / "archive.json")

    def digest(changed: Workflow, **more: int) -> str:
        return settings_digest(changed.described(**more))

    same = read_workflow(API / "archive.json", ["2.image=x.png", "4.filename_prefix=x"])
    same.prompt["3"]["_meta"]["title"] = "Another title"
    assert digest(workflow, quality=95) == digest(same, quality=95)
    other = read_workflow(API / "archive.json", ["3.seed=2"])
    assert len({digest(workflow, quality=95), digest(other, quality=95), digest(workflow)}) == 3


def test_people_are_given_the_adapters_of_a_folder(tmp_path: Path) -> None:
    prompt = json.loads((API / "archive.json").read_text(encoding="utf-8"))
    prompt["3"]["class_type"] = PEOPLE[0]
    prompt["3"]["inputs"] |= {"adapters.adapter_1": ["9", 0], "adapters.adapter_2": ["9", 0]}
    prompt["3"]["inputs"] |= {"photos.photos_2": ["8", 0]}
    workflow = read_workflow(written(tmp_path / "people.json", prompt))
    for name in ("ben", "anna", "carl"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    given, digests = with_identities(workflow, tmp_path)
    inputs = given.prompt["3"]["inputs"]
    loaded = [given.prompt[inputs[f"adapters.adapter_{k}"][0]]["inputs"] for k in (1, 2, 3)]
    assert [x["file_name"] for x in loaded] == [
        f"archive/{name}.safetensors" for name in ("anna", "ben", "carl")
    ]
    assert sum(key.startswith("adapters.") for key in inputs) == 3
    assert "photos.photos_2" not in inputs, "they are of another person than Ben"
    assert workflow.prompt["3"]["inputs"]["adapters.adapter_2"] == ["9", 0], "it is not changed"
    (tmp_path / "ben.safetensors").write_bytes(b"learned better")
    changed = with_identities(workflow, tmp_path)[1]
    assert [name for name in digests if changed[name] != digests[name]] == ["ben.safetensors"]

    with pytest.raises(PFStorerError, match="holds 0 adapters"):
        with_identities(workflow, tmp_path / "nothing")
    with pytest.raises(PFStorerError, match="0 nodes that recognise people"):
        with_identities(read_workflow(API / "archive.json"), tmp_path)


def test_a_worker_s_comfyui_finds_the_base_s_models_and_nodes(tmp_path: Path) -> None:
    base, scratch, people = tmp_path / "base", tmp_path / "scratch", tmp_path / "people"
    for place in (
        base / "models" / "vae" / "a.safetensors",
        base / "models" / ADAPTERS / "own.safetensors",
        base / "custom_nodes" / "other" / "__init__.py",
        base / "custom_nodes" / PACK / "__init__.py",
        people / "anna.safetensors",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(place.name.encode())
    (base / "custom_nodes" / "clone").symlink_to(REPO, target_is_directory=True)
    before = sorted(base.rglob("*"))
    link_base(base, scratch, people)
    models = scratch / "models"
    assert (models / "vae" / "a.safetensors").read_bytes() == b"a.safetensors"
    assert (models / ADAPTERS / "own.safetensors").is_file()
    assert (models / ADAPTERS / "archive" / "anna.safetensors").is_file()
    custom_nodes = {path.name for path in (scratch / "custom_nodes").iterdir()}
    assert custom_nodes == {f"{PACK}-{TRIMMING.name}", "other"}
    (models / ADAPTERS / "new").mkdir()
    assert sorted(base.rglob("*")) == before, "the base is not written to"
    link_base(tmp_path / "nothing", tmp_path / "empty")
    assert list((tmp_path / "empty" / "models" / ADAPTERS).iterdir()) == []
