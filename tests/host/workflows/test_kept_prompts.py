"""API prompts of earlier versions run as ever."""

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_client import Client
from workflow_runs import SHORT_TRAINING, pictures

KEPT = sorted((Path(__file__).parents[2] / "kept").glob("*/workflows/api/*.json"))
SHORTER: dict[str, dict[str, Any]] = {  # what else would take minutes, by class
    "PFStorerTrainIdentityAdapter": SHORT_TRAINING,
    "PFStorerDemoAlbum": {"columns": 4, "rows": 2, "size": 64},
    "ImageScale": {"width": 96},
}
LARGEST = {"PFStorerTiledRestore": {"longest_side": 192, "scale": 1.0}}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_a_prompt_of_an_earlier_version_runs(client: Client, path: Path) -> None:
    prompt = json.loads(path.read_text())
    for node in prompt.values():
        node["inputs"].update(SHORTER.get(node["class_type"], {}))
        for name, value in LARGEST.get(node["class_type"], {}).items():
            node["inputs"][name] = min(node["inputs"][name], value)
    run = client.run(prompt)
    assert run.status == "success", run.error
    saved = {key for key, node in prompt.items() if node["class_type"] == "SaveImage"}
    assert saved and saved <= set(pictures(client, run))
