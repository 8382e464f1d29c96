"""The nodes in this process, as ComfyUI's loader made them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_pack import BUNDLED, RESTORE
from setup_host import REPO
from tiny_models import image, write_bundled


@pytest.fixture(scope="module")
def restorer(pack: Any, base_directory: Path) -> str:
    """The name of a restorer file among ComfyUI's models."""
    folder = base_directory / "models" / "pfstorer_restorers"
    write_bundled(folder / "tiny_nodes.safetensors")
    return "tiny_nodes.safetensors"


@pytest.fixture
def loaded(pack: Any, restorer: str) -> tuple[Any, Any, Any]:
    return pack.node("PFStorerLoadBaseRestorer").execute(restorer, BUNDLED).args


def inputs_of(node: Any) -> dict[str, Any]:
    return {entry.id: entry for entry in node.define_schema().inputs}


def test_a_loaded_restorer_runs_in_tiled_restore(pack: Any, loaded: Any) -> None:
    model, _, vae = loaded
    pixels = image((40, 48), 2)
    node = pack.node("PFStorerTiledRestore")
    out, report = node.execute(model, vae, pixels, **RESTORE).args
    assert out.shape == (2, 40, 48, 3)
    assert report.startswith("48 x 40 px in 1 tile of ")
    out, _ = node.execute(model, vae, pixels, **{**RESTORE, "longest_side": 96}).args
    assert out.shape == (2, 80, 96, 3)


def test_a_conditioned_model_runs_in_ksampler(pack: Any, loaded: Any) -> None:
    import nodes

    model, clip, vae = loaded
    node = pack.node("PFStorerConditionOnLQ")
    conditioned, latent = node.execute(model, vae, image((40, 50))).args
    assert latent["samples"].shape == (1, 4, 10, 12), "cropped to whole latent pixels"
    (prompt,) = nodes.CLIPTextEncode().encode(clip, "")
    (out,) = nodes.KSampler().sample(
        conditioned, 0, 2, 1.0, "dpmpp_2m", "karras", prompt, prompt, latent
    )
    assert out["samples"].isfinite().all()
    with pytest.raises(ValueError, match="The image has the shape"):
        node.execute(model, vae, torch.zeros(1, 8, 8, 2))


def test_demo_portraits_are_one_person_clean_or_degraded(pack: Any) -> None:
    node = pack.node("PFStorerDemoPortrait")
    (clean,) = node.execute(5, 2, 7, 64, "none").args
    assert clean.shape == (2, 64, 64, 3)
    assert 0 <= clean.min() and clean.max() <= 1
    (again,) = node.execute(5, 2, 7, 64, "none").args
    assert torch.equal(again, clean)
    (spoilt,) = node.execute(5, 2, 7, 64, "medium").args
    difference = (spoilt - clean).abs().mean()
    (other_person,) = node.execute(6, 2, 7, 64, "none").args
    (other_views,) = node.execute(5, 2, 8, 64, "none").args
    assert 0 < difference < (other_person - clean).abs().mean()
    assert difference < (other_views - clean).abs().mean()


@pytest.mark.parametrize("degradation", ["light", "medium", "extreme", "face"])
def test_each_degradation_can_be_chosen(pack: Any, degradation: str) -> None:
    node = pack.node("PFStorerDemoPortrait")
    assert degradation in inputs_of(node)["degradation"].options
    (out,) = node.execute(0, 1, 0, 64, degradation).args
    assert out.shape == (1, 64, 64, 3)


def test_a_changed_file_is_loaded_again(pack: Any, restorer: str, base_directory: Path) -> None:
    node = pack.node("PFStorerLoadBaseRestorer")
    before = node.fingerprint_inputs(restorer, BUNDLED)
    assert node.fingerprint_inputs(restorer, BUNDLED) == before
    path = base_directory / "models" / "pfstorer_restorers" / restorer
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert node.fingerprint_inputs(restorer, BUNDLED) != before


def test_missing_files_are_named(pack: Any, restorer: str) -> None:
    node = pack.node("PFStorerLoadBaseRestorer")
    with pytest.raises(ValueError, match=r"no restorer 'gone\.ckpt'; put the file into .*rest"):
        node.execute("gone.ckpt", BUNDLED)
    with pytest.raises(ValueError, match=r"no checkpoint 'gone\.ckpt'; put the file into"):
        node.execute(restorer, "gone.ckpt")


def test_the_lists_show_the_files_that_are_there(
    pack: Any, restorer: str, base_directory: Path
) -> None:
    node = pack.node("PFStorerLoadBaseRestorer")
    options = inputs_of(node)["restorer"].options
    assert options[0] == "mini (bundled)"
    assert restorer in options
    assert inputs_of(node)["checkpoint"].options[0] == BUNDLED


def test_every_node_has_words_for_the_search_and_help(pack: Any) -> None:
    labels = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text())
    for node_id, label in labels.items():
        schema = pack.node(node_id).define_schema()
        assert schema.search_aliases
        assert label["description"] == schema.description
        for name, entry in inputs_of(pack.node(node_id)).items():
            assert label["inputs"][name]["tooltip"] == entry.tooltip
