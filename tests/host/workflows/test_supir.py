"""The template of SUPIR, through the real server."""

import json
from typing import Any

import numpy as np
import pytest
from comfyui_client import Client
from comfyui_queue import PromptRefused
from setup_host import REPO
from workflow_runs import changed, pictures

pytest.importorskip("comfy.ldm.supir.supir_modules", reason="no SUPIR in ComfyUI")

EXAMPLES = REPO / "example_workflows"
PROMPT = json.loads((EXAMPLES / "api" / "supir_person.json").read_text())
TEMPLATE = json.loads((EXAMPLES / "7 Restore a person with SUPIR.json").read_text())
CHECKPOINT, PATCH, STAND_IN, LOADER, PHOTOS, TRAIN, APPLY, PHOTO, RESTORE, SAVE = (
    "1 2 3 5 6 7 8 11 12 13".split()
)
SIZE = 64  # px
# What a person chooses in the template is drawn in the prompt, which has nothing to show either.
OF_PROMPT = {"PFStorerDemoPortrait"}
OF_TEMPLATE = {"LoadImage", "LoadImageDataSetFromFolder", "ImageCompare", "MarkdownNote"}
FILES = {
    "CheckpointLoaderSimple",
    "ModelPatchLoader",
}  # no template names files that may not be there


def tiny(prompt: dict[str, Any]) -> dict[str, Any]:
    """Returns the prompt with the files of 8 GB replaced, small pictures and few steps."""
    for node, size in ((PHOTOS, {"views": 2}), (PHOTO, {})):
        prompt = changed(prompt, node, size=SIZE, **size)
    prompt = changed(prompt, STAND_IN, width=SIZE, height=SIZE)
    prompt = changed(prompt, TRAIN, steps=3, views_per_photo=1, size=SIZE, preview_every=0)
    prompt = changed(prompt, RESTORE, steps=2)
    return prompt | {
        CHECKPOINT: {"class_type": "TinySDXL", "inputs": {}},
        PATCH: {"class_type": "TinySUPIR", "inputs": {}},
    }


def test_it_runs_where_the_files_are(client: Client) -> None:
    prompt = tiny(PROMPT)
    runs = {
        "person": prompt,
        "gamma 0": changed(prompt, APPLY, gamma=0.0),
        "no adapter": changed(prompt, RESTORE, model=[LOADER, 0]),
    }
    made = {}
    for name, changes in runs.items():
        run = client.run(changed(changes, SAVE, filename_prefix=name))
        assert run.status == "success", run.error
        made[name] = pictures(client, run)[SAVE]
    assert made["person"].shape == (1, SIZE, SIZE, 3)
    assert made["person"].std() > 1
    assert np.array_equal(made["gamma 0"], made["no adapter"])
    assert not np.array_equal(made["person"], made["no adapter"])


def test_without_the_files_the_host_says_which(client: Client) -> None:
    with pytest.raises(PromptRefused) as refused:
        client.run(PROMPT)
    assert "Value not in list: ckpt_name" in str(refused.value)
    assert "Value not in list: name" in str(refused.value)


def links_of_template() -> set[tuple[str, int, str, str]]:
    nodes = {node["id"]: node for node in TEMPLATE["nodes"]}
    return {
        (nodes[a]["type"], out, nodes[b]["type"], nodes[b]["inputs"][slot]["name"])
        for _, a, out, b, slot, _ in TEMPLATE["links"]
        if not {nodes[a]["type"], nodes[b]["type"]} & OF_TEMPLATE
    }


def links_of_prompt() -> set[tuple[str, int, str, str]]:
    return {
        (PROMPT[value[0]]["class_type"], value[1], node["class_type"], name)
        for node in PROMPT.values()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and PROMPT[value[0]]["class_type"] not in OF_PROMPT
    }


def values(kind: str, given: Any) -> tuple[str, list[Any]]:
    return kind, [value for value in given if not isinstance(value, list) and value != "fixed"]


def test_the_prompt_is_the_template() -> None:
    assert links_of_prompt() == links_of_template()
    shown = [
        values(node["type"], node["widgets_values"])
        for node in TEMPLATE["nodes"]
        if node["type"] not in OF_TEMPLATE | FILES
    ]
    asked = [
        values(node["class_type"], node["inputs"].values())
        for node in PROMPT.values()
        if node["class_type"] not in OF_PROMPT | FILES
    ]
    assert sorted(shown, key=str) == sorted(asked, key=str)
