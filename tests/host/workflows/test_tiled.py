"""Large pictures and several people through the API queue of a real server."""

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from comfyui_client import TEXT_EVENT, Client, Run
from comfyui_server import Server
from PIL import Image
from setup_host import REPO
from tiny_models import write_bundled
from workflow_runs import SHORT_TRAINING, changed, pictures

API = REPO / "example_workflows" / "api"
PHOTO = json.loads((API / "restore_photo.json").read_text())
TILED = json.loads((API / "tiled_4k.json").read_text())
GROUP = json.loads((API / "group_photo.json").read_text())
LOADER, RESTORE, SAVE, TEXT = "1", "4", "5", "20"  # in PHOTO, the last added
SINCE_TILES = (
    "masked_only",
    "upscaling",
    "tile_size",
    "overlap",
    "tile_batch",
    "fidelity",
    "feather",
    "encoder_interval",
)
Prompt = dict[str, Any]


@pytest.fixture(scope="module")
def prompt(server: Server) -> Prompt:
    """The photo template's restoration with a tiny restorer of random weights, and its report."""
    name = "tiny_tiled_workflow.safetensors"
    write_bundled(server.base / "models" / "pfstorer_restorers" / name)
    prompt = changed({node: PHOTO[node] for node in ("1", "3", RESTORE, SAVE)}, "1", restorer=name)
    prompt[TEXT] = {"class_type": "PreviewAny", "inputs": {"source": [RESTORE, 1]}}
    return changed(prompt, RESTORE, steps=2)


def titled(prompt: Prompt) -> dict[str, str]:
    """Returns the ids of a template's nodes by title."""
    return {node["_meta"]["title"]: key for key, node in prompt.items()}


def texts(run: Run, node: str) -> list[str]:
    return [data["text"] for data in run.of_type(TEXT_EVENT) if data["node"] == node]


def test_the_tiled_template_runs_in_tiles(client: Client) -> None:
    nodes = titled(TILED)
    small = changed(TILED, nodes["Degraded album page"], columns=4, rows=2, size=64)
    small = changed(small, nodes["Small scan: your photo goes here"], width=96)
    small = changed(small, nodes["Only scaled"], width=384)
    small = changed(small, nodes["Tiled Restore"], longest_side=384, tile_size=128, steps=2)
    run = client.run(small)
    assert run.status == "success", run.error
    shown = pictures(client, run)
    restored, scaled = shown[nodes["Restored"]], shown[nodes["Only scaled, for comparison"]]
    assert restored.shape == scaled.shape == (1, 196, 384, 3)
    assert 1 < np.abs(restored - scaled).mean() < 30, "the same page, but restored"
    (report,) = run.outputs[nodes["Report"]]["text"]
    match = re.match(r"384 x 196 px in (\d+) tiles of ", report)
    assert match and int(match[1]) > 1


def test_the_group_template_restores_each_person_in_a_mask(client: Client) -> None:
    nodes = titled(GROUP)
    few = GROUP
    for who in ("Train person 1", "Train person 2"):
        few = changed(few, nodes[who], **SHORT_TRAINING)
    for how in ("Restore with the adapters", "Restore without the adapters"):
        few = changed(few, nodes[how], steps=2, scale=2.4)
    few = changed(few, nodes["The same photo, clean"], width=960, height=384)
    few = changed(few, nodes["Only scaled"], width=960)
    run = client.run(few)
    assert run.status == "success", run.error
    shown = pictures(client, run)
    rows = shown[nodes["Side by side"]]
    assert rows.shape == (1, 4 * 384, 960, 3)
    lq, base, personalized, clean = np.split(rows, 4, 1)
    assert np.array_equal(personalized, shown[nodes["Personalized"]])
    assert not np.array_equal(base, personalized), "six steps change something"
    assert min(np.abs(base - other).mean() for other in (lq, clean)) > 2
    (report,) = run.outputs[nodes["Report"]]["text"]
    for number in (1, 2):
        line = rf"Identity {number} \(person {number}\), gamma 1: mask of [\d.]+% of the picture"
        assert re.search(line, report)
    assert "Identity 3" not in report


def test_a_prompt_of_before_tiles_runs_as_ever(client: Client, prompt: Prompt) -> None:
    old = copy.deepcopy(prompt)
    for name in SINCE_TILES:
        del old[RESTORE]["inputs"][name]
    before = client.run(changed(old, RESTORE, seed=51))
    assert before.status == "success", before.error
    now = client.run(changed(prompt, RESTORE, seed=51))
    assert np.array_equal(pictures(client, before)[SAVE], pictures(client, now)[SAVE])


def test_the_report_is_shown_while_it_grows_and_is_an_output(
    client: Client, prompt: Prompt
) -> None:
    settings = {"longest_side": 256, "tile_size": 128, "upscaling": "one pass"}
    run = client.run(changed(prompt, RESTORE, seed=52, **settings))
    assert run.status == "success", run.error
    (report,) = run.outputs[TEXT]["text"]
    shown = texts(run, RESTORE)
    assert shown[-1] == report
    first, last = report.splitlines()[0], report.splitlines()[-1]
    assert re.match(r"256 x 256 px in 9 tiles of 128 x 128 px", first)
    assert re.fullmatch(r"Done in [\d.]+ s", last)
    assert "Settings: 2 steps of euler (normal), cfg 1," in report, "what was not seen is told"
    estimate = next(k for k, text in enumerate(shown) if first in text)
    work = next(k for k, text in enumerate(shown) if text.startswith(("encoding", "step")))
    assert estimate < work, "the estimate comes before the work"
    assert f"encoding\n{first}" in shown and f"decoding\n{first}" in shown


def test_it_is_interrupted_between_tiles(client: Client, prompt: Prompt) -> None:
    settings = {"longest_side": 768, "tile_size": 64, "tile_batch": 1, "steps": 50, "seed": 53}
    seen: list[str] = []

    def stop(event: dict[str, Any]) -> None:
        text = event["data"].get("text", "")
        if event["type"] == TEXT_EVENT and "step 1 of 50, tile " in text:
            if not seen:
                client.interrupt()
            seen.append(text)

    run = client.run(changed(prompt, RESTORE, upscaling="one pass", **settings), on_event=stop)
    assert run.status == "interrupted"
    assert len(seen) >= 1
    steps = [d["value"] for d in run.of_type("progress") if d["node"] == RESTORE and d["max"] == 50]
    assert max(steps, default=0) == 0, "the first step was not finished"
    assert client.run(changed(prompt, RESTORE, seed=54)).status == "success"


def test_an_alpha_channel_comes_back_scaled(client: Client, server: Server, prompt: Prompt) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 56, 4), dtype=np.uint8)
    pixels[..., 3] = np.linspace(0, 255, 56).astype(np.uint8)  # transparent on the left
    (server.base / "input").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(server.base / "input" / "alpha.png")
    graph = changed(prompt, RESTORE, image=["12", 0], scale=2.0)
    graph |= {
        "11": {"class_type": "LoadImage", "inputs": {"image": "alpha.png"}},
        "12": {
            "class_type": "JoinImageWithAlpha",
            "inputs": {"image": ["11", 0], "alpha": ["11", 1]},
        },
    }
    run = client.run(graph)
    assert run.status == "success", run.error
    restored = pictures(client, run)[SAVE]
    assert restored.shape == (1, 80, 112, 4)
    assert np.abs(restored[0, ..., 3] - np.linspace(0, 255, 112)).max() < 4
    opaque = client.run(changed(graph, RESTORE, image=["11", 0]))
    assert np.array_equal(pictures(client, opaque)[SAVE], restored[..., :3])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"masked_only": True}, "no identity has a mask; connect masks to 'Apply Personal"),
        ({"fidelity": 0.5}, "the VAE has no CFW fusion layers; connect the VAE of 'Load CFW"),
        ({"tile_size": 8}, "Tiles of 8 px are too small for this restorer"),
    ],
)
def test_settings_that_do_not_fit_get_one_sentence(
    client: Client, prompt: Prompt, settings: dict[str, Any], sentence: str
) -> None:
    run = client.run(changed(prompt, RESTORE, **settings))
    assert run.status == "error" and run.error is not None
    assert run.error["node_type"] == "PFStorerTiledRestore"
    assert run.error["exception_type"].endswith("PFStorerError")
    assert sentence in run.error["exception_message"]
