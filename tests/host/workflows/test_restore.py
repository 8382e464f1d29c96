"""Restoration through the API queue of a real server."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_client import Client
from comfyui_queue import PromptRefused
from comfyui_server import Server
from PIL import Image
from setup_host import REPO
from tiny_models import write_bundled
from workflow_runs import changed, pictures

PROMPT = json.loads((REPO / "example_workflows" / "api" / "restore_photo.json").read_text())
LOADER, CLEAN, DEGRADED, RESTORE, SAVE = "1", "2", "3", "4", "5"
TINY = "tiny_workflow.safetensors"


@pytest.fixture(scope="module")
def prompt(server: Server) -> dict[str, Any]:
    """The template's prompt with a tiny restorer of random weights."""
    write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    prompt = copy.deepcopy(PROMPT)
    prompt[LOADER]["inputs"]["restorer"] = TINY
    return prompt


def error_of(client: Client, prompt: dict[str, Any]) -> dict[str, Any]:
    run = client.run(prompt)
    assert run.status == "error"
    assert run.error is not None
    return run.error


def test_the_template_runs_as_it_lies(client: Client) -> None:
    run = client.run(PROMPT)
    assert run.status == "success", run.error
    shown = pictures(client, run)
    assert {node: value.shape for node, value in shown.items()} == {
        node: (1, 128, 128, 3) for node in ("5", "6", "7")
    }
    lq, restored, clean = shown["6"], shown["5"], shown["7"]
    assert np.abs(restored - lq).mean() > 1
    assert np.abs(clean - lq).mean() > 1


def test_progress_and_previews_come_as_from_core(client: Client, prompt: dict[str, Any]) -> None:
    run = client.run(changed(prompt, RESTORE, seed=11, steps=5))
    assert run.status == "success"
    steps = [data for data in run.of_type("progress") if data["node"] == RESTORE]
    assert [data["value"] for data in steps if data["max"] == 5] == [1, 2, 3, 4, 5]
    previews = [blob for meta, blob in run.previews if meta["node_id"] == RESTORE]
    assert len(previews) >= 1
    for blob in previews:
        assert min(Image.open(io.BytesIO(blob)).size) >= 32


def test_queued_again_it_is_cached_and_another_seed_is_not(
    client: Client, prompt: dict[str, Any]
) -> None:
    first = pictures(client, client.run(changed(prompt, RESTORE, seed=21)))
    again = client.run(changed(prompt, RESTORE, seed=21))
    assert RESTORE in again.of_type("execution_cached")[0]["nodes"]
    other = client.run(changed(prompt, RESTORE, seed=22))
    cached = other.of_type("execution_cached")[0]["nodes"]
    assert LOADER in cached and RESTORE not in cached
    back = client.run(changed(prompt, RESTORE, seed=21, steps=8, denoise=0.999999))
    results = [pictures(client, run)[SAVE] for run in (other, back)]
    assert np.abs(results[0] - first[SAVE]).mean() > 0.5, "another seed, another picture"
    assert np.abs(results[1] - first[SAVE]).mean() < 0.5, "nothing was left over from the others"


def test_two_branches_in_one_prompt(client: Client, prompt: dict[str, Any]) -> None:
    other = {"inputs": {**prompt[DEGRADED]["inputs"], "identity": 1_000_004}}
    alone = pictures(client, client.run(changed(prompt, RESTORE, seed=31)))[SAVE]
    both = changed(prompt, RESTORE, seed=31)
    both["13"] = {**prompt[DEGRADED], **other}
    both["14"] = copy.deepcopy(both[RESTORE])
    both["14"]["inputs"]["image"] = ["13", 0]
    both["15"] = {**prompt[SAVE], "inputs": {**prompt[SAVE]["inputs"], "images": ["14", 0]}}
    shown = pictures(client, client.run(both))
    assert np.array_equal(shown[SAVE], alone)
    assert np.abs(shown["15"] - shown[SAVE]).mean() > 5


def test_any_ksampler_runs_a_conditioned_model(client: Client, prompt: dict[str, Any]) -> None:
    graph = {node: prompt[node] for node in (LOADER, DEGRADED)} | {
        "20": {
            "class_type": "PFStorerConditionOnLQ",
            "inputs": {"model": [LOADER, 0], "vae": [LOADER, 2], "image": [DEGRADED, 0]},
        },
        "21": {"class_type": "CLIPTextEncode", "inputs": {"clip": [LOADER, 1], "text": "a face"}},
        "22": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["20", 0],
                "latent_image": ["20", 1],
                "positive": ["21", 0],
                "negative": ["21", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 2.0,
                "sampler_name": "dpmpp_2m_sde",
                "scheduler": "karras",
                "denoise": 1.0,
            },
        },
        "23": {"class_type": "VAEDecode", "inputs": {"samples": ["22", 0], "vae": [LOADER, 2]}},
        "24": {
            "class_type": "SaveImage",
            "inputs": {"images": ["23", 0], "filename_prefix": "pfstorer/ksampler"},
        },
    }
    run = client.run(graph)
    assert run.status == "success", run.error
    assert pictures(client, run)["24"].shape == (1, 128, 128, 3)

    graph["22"] = changed(graph, "22", model=[LOADER, 0])["22"]
    error = error_of(client, graph)
    assert error["node_type"] == "KSampler"
    assert "was sampled without an LQ image; put 'Condition on LQ" in error["exception_message"]


@pytest.mark.parametrize(
    ("node", "inputs", "kind"),
    [
        (RESTORE, {"steps": 0}, "value_smaller_than_min"),
        (RESTORE, {"scale": 99.0}, "value_bigger_than_max"),
        (RESTORE, {"sampler_name": "magic"}, "value_not_in_list"),
        (RESTORE, {"color_fix": "magic"}, "value_not_in_list"),
        (RESTORE, {"image": [LOADER, 1]}, "return_type_mismatch"),
        (LOADER, {"restorer": "gone.ckpt"}, "value_not_in_list"),
        (LOADER, {"checkpoint": "gone.ckpt"}, "value_not_in_list"),
        (DEGRADED, {"views": 0}, "value_smaller_than_min"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    client: Client, prompt: dict[str, Any], node: str, inputs: dict[str, Any], kind: str
) -> None:
    with pytest.raises(PromptRefused) as refused:
        client.queue(changed(prompt, node, **inputs))
    (error,) = refused.value.node_errors[node]["errors"]
    assert error["type"] == kind
    assert error["extra_info"]["input_name"] in inputs


def test_a_missing_input_is_named(client: Client, prompt: dict[str, Any]) -> None:
    without = copy.deepcopy(prompt)
    del without[RESTORE]["inputs"]["vae"]
    with pytest.raises(PromptRefused) as refused:
        client.queue(without)
    (error,) = refused.value.node_errors[RESTORE]["errors"]
    assert (error["type"], error["details"]) == ("required_input_missing", "vae")


def test_a_damaged_file_gets_one_sentence(
    client: Client, server: Server, prompt: dict[str, Any]
) -> None:
    folder: Path = server.base / "models" / "pfstorer_restorers"
    whole = (folder / TINY).read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[: len(whole) // 2])
    error = error_of(client, changed(prompt, LOADER, restorer="damaged.safetensors"))
    assert error["node_type"] == "PFStorerLoadBaseRestorer"
    assert "damaged.safetensors" in error["exception_message"]
    assert error["exception_type"].endswith("PFStorerError")


def test_an_output_of_many_tiles(client: Client, prompt: dict[str, Any]) -> None:
    settings = {"longest_side": 200, "tile_size": 64, "tile_batch": 4}
    run = client.run(changed(prompt, RESTORE, **settings))
    assert run.status == "success"
    assert pictures(client, run)[SAVE].shape == (1, 200, 200, 3)


def test_a_wrong_setting_gets_one_sentence(client: Client, prompt: dict[str, Any]) -> None:
    error = error_of(client, changed(prompt, RESTORE, tile_size=8))
    assert error["node_type"] == "PFStorerTiledRestore"
    assert "Tiles of 8 px are too small for this restorer" in error["exception_message"]


def test_it_can_be_interrupted_and_the_queue_goes_on(
    client: Client, prompt: dict[str, Any]
) -> None:
    seen: list[float] = []

    def stop(event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "progress" and data["node"] == RESTORE and data["max"] == 1000:
            if not seen:
                client.interrupt()
            seen.append(data["value"])

    run = client.run(changed(prompt, RESTORE, steps=1000, seed=41), on_event=stop)
    assert run.status == "interrupted"
    assert 1 <= len(seen) < 900
    assert client.run(changed(prompt, RESTORE, seed=42)).status == "success"
