"""A server of the campaign's own, and the prompts that it is given."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from comfyui_client import Client, Run
from comfyui_queue import Prompt
from comfyui_server import Server
from in_process import has_gpu
from PIL import Image
from setup_host import REPO, find_comfyui
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.identities.adapter import IdentityAdapter

API = REPO / "example_workflows" / "api"
LOADER, TRAIN, SAVE = "1", "3", "4"  # of the training's template
SHOW = "9"
PHOTOS = 3


def new_server(base: Path) -> Server:
    """Returns a server, not started, whose models, input and output lie in `base`."""
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    cpu = not has_gpu()
    return Server(comfyui, Path(sys.executable), base, cpu=cpu)


def identities(server: Server) -> Path:
    """Returns the folder of adapters."""
    return server.base / "models" / "pfstorer_identities"


def training_runs(server: Server) -> Path:
    """Returns the folder in which the states of trainings lie, one folder each."""
    return server.base / "user" / "pfstorer" / "training"


def write_photos(server: Server, identity: int) -> list[str]:
    """Puts photos of one person into the server's input folder and returns their names."""
    folder = server.base / "input"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, picture in enumerate(portrait_set(identity, PHOTOS, seed=1)):
        names.append(f"person_{identity}_{number}.png")
        to_pil_image(picture).save(folder / names[-1])
    return names


def training(photos: list[str], file_name: str, **settings: Any) -> Prompt:
    """Returns a prompt that trains on photos of the input folder and saves the adapter.

    Args:
        photos: their names.
        file_name: what the adapter's file is to be called.
        settings: inputs of Train Identity Adapter; the rest is the template's.
    """
    template = json.loads((API / "train_identity.json").read_text(encoding="utf-8"))
    prompt = {node: copy.deepcopy(template[node]) for node in (LOADER, TRAIN, SAVE)}
    previous = None
    for number, photo in enumerate(photos):
        node = f"1{number}"
        prompt[node] = {"class_type": "LoadImage", "inputs": {"image": photo}}
        if previous is not None:
            images = {"image1": previous, "image2": [node, 0]}
            node = f"2{number}"
            prompt[node] = {"class_type": "ImageBatch", "inputs": images}
        previous = [node, 0]
    prompt[TRAIN]["inputs"] |= {"photos": previous, **settings}
    prompt[SAVE]["inputs"] |= {"file_name": file_name, "overwrite": True}
    return prompt


def restoration(adapter: str | None, seed: int, steps: int = 2) -> Prompt:
    """Returns a prompt that restores a small degraded portrait.

    Args:
        adapter: file of an adapter, applied strongly; None restores with the base.
        seed: of the portrait and of the sampling.
        steps: of the sampling.
    """
    template = json.loads((API / "personalized_restore.json").read_text(encoding="utf-8"))
    prompt = {node: copy.deepcopy(template[node]) for node in (LOADER, "4", "8")}
    prompt["4"]["inputs"] |= {"views": 1, "seed": seed}
    prompt["8"]["inputs"] |= {"seed": seed, "steps": steps}
    if adapter is None:
        prompt["8"]["inputs"]["model"] = [LOADER, 0]
    else:
        prompt["6"] = copy.deepcopy(template["6"])
        prompt["6"]["inputs"] |= {"adapter": ["5", 0], "gamma": 2.0}
        prompt["5"] = {"class_type": "PFStorerLoadIdentity", "inputs": {"file_name": adapter}}
    show = {"images": ["8", 0], "filename_prefix": "pfstorer/faults"}
    prompt[SHOW] = {"class_type": "SaveImage", "inputs": show}
    return prompt


def listed(client: Client) -> list[str]:
    """Returns the files that Load Identity Adapter offers now."""
    info = client.object_info("PFStorerLoadIdentity")
    if info is None:
        raise RuntimeError("the server has no node PFStorerLoadIdentity")
    options: list[str] = info["input"]["required"]["file_name"][1]["options"]
    return options


def pixels(server: Server, run: Run, node: str = SHOW) -> str:
    """Returns a digest of the pixels of the one picture that a node of a run has saved."""
    (saved,) = run.outputs[node]["images"]
    path = server.base / "output" / saved["subfolder"] / saved["filename"]
    with Image.open(path) as picture:
        return hashlib.sha256(picture.tobytes()).hexdigest()


def stored_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of an adapter's file as they are stored.

    Raises:
        PFStorerError: the file cannot be loaded.
    """
    return IdentityAdapter.load(path, dtype=None).state_dict()


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Says whether two adapters' tensors are the same bit for bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) for key in theirs
    )
