"""A family and a method of one file each, through the real server, without a change in the core."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_client import Client
from comfyui_server import Server
from safetensors import safe_open
from setup_host import REPO
from tiny_models import bundled_of, randomise, tiny_unet
from workflow_runs import changed, pictures

from pfstorer_core import host
from pfstorer_core.degradation import PRESETS
from pfstorer_core.errors import PFStorerError
from pfstorer_core.host.load.bundled import load_bundled
from pfstorer_core.host.sites import find_sft_sites
from pfstorer_core.host.train.base import BaseTraining, NewRestorer, Pairs, train_base_restorer
from pfstorer_core.identities.adapter import IdentityAdapter
from pfstorer_core.identities.methods import METHODS
from pfstorer_core.restorers import files as restorer_files
from pfstorer_core.restorers.base import FAMILIES, BaseRestorer
from pfstorer_core.training.base import BaseTrainingConfig
from pfstorer_core.training.loop import LoopConfig

TOYS = REPO / "tests" / "toys"
API = REPO / "example_workflows" / "api"
TRAINING = json.loads((API / "train_identity.json").read_text())
RESTORING = json.loads((API / "personalized_restore.json").read_text())
FILE = "toy.safetensors"


@pytest.fixture(scope="module")
def toys() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The two modules, known to the core of this process while tests of this file run."""
    sys.path.append(str(TOYS))
    yield importlib.import_module("toy_family"), importlib.import_module("toy_method")
    sys.path.remove(str(TOYS))
    del FAMILIES["toy"], METHODS["toy"], sys.modules["toy_family"], sys.modules["toy_method"]


@pytest.fixture(scope="module")
def toy_server(
    toys: Any, comfyui: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Server]:
    """A ComfyUI process that loads this plugin and then the toys, as custom nodes."""
    base = tmp_path_factory.mktemp("newcomers")
    nodes = base / "more_nodes"
    nodes.mkdir()
    for name in ("toy_family.py", "toy_method.py"):
        shutil.copy(TOYS / name, nodes)
    paths = base / "more.yaml"
    paths.write_text(f"newcomers:\n  custom_nodes: {json.dumps(str(nodes))}\n")
    cpu = not pytestconfig.getoption("gpu")
    options = ["--extra-model-paths-config", str(paths)]
    with Server(comfyui, Path(sys.executable), base, cpu=cpu, options=options) as running:
        write_toy(toys[0], running.base / "models" / "pfstorer_restorers" / FILE)
        yield running


def write_toy(family: ModuleType, path: Path) -> Path:
    """Writes a bundled restorer of the toy family."""
    torch.manual_seed(0)
    unet = tiny_unet()
    randomise(unet)
    channels = {site: found[0] for site, found in find_sft_sites(unet).items()}
    kind = {"name": "toy", "prediction_type": "v_prediction"}
    restorer = BaseRestorer.initialise(channels, family.ToyConfig(), **kind)
    restorer_files.save(bundled_of(restorer, unet), path)
    return path


def header(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[key])


def test_they_load_train_save_and_restore(toy_server: Server, toys: Any) -> None:
    few = {"steps": 4, "views_per_photo": 2, "batch": 1, "preview_every": 0, "method": "toy"}
    training = changed(changed(TRAINING, "1", restorer=FILE), "3", learning_rate=0.05, **few)
    restoring = changed(RESTORING, "1", restorer=FILE)
    restoring["3"] = {
        "class_type": "PFStorerLoadIdentity",
        "inputs": {"file_name": "toy.safetensors"},
    }
    with Client(toy_server.url) as client:
        shown = client.object_info("PFStorerTrainIdentityAdapter")
        assert shown is not None
        assert "method" in shown["input"]["required"]
        run = client.run(changed(training, "4", file_name="toy"))
        assert run.status == "success", run.error
        run = client.run(restoring)
        assert run.status == "success", run.error
        made = pictures(client, run)
    base, personalized = made["14"], made["15"]
    assert np.abs(base - made["13"]).mean() > 1, "the restorer changes the picture"
    assert np.abs(personalized - base).mean() > 0.1, "and so does the adapter"
    path = toy_server.base / "models" / "pfstorer_identities" / "toy.safetensors"
    assert header(path, "pfstorer_identity")["method"] == "toy"
    adapter = IdentityAdapter.load(path)
    assert all(bool(adapter.block(site).widen.weight.any()) for site in adapter.sites)


def test_a_restorer_of_the_family_is_trained_saved_and_loaded(toys: Any, tmp_path: Path) -> None:
    family, _ = toys
    checkpoint = load_bundled(write_toy(family, tmp_path / "base.safetensors"))
    source = _Noise(64)
    restorer, done = train_base_restorer(
        checkpoint,
        NewRestorer("trained", family.ToyConfig()),
        Pairs(source, [(1.0, PRESETS["light"])], capacity=8),
        BaseTraining(LoopConfig(steps=2, warmup_steps=0), BaseTrainingConfig(batch=2)),
        tmp_path / "run",
    )
    assert done
    restorer_files.save(restorer, tmp_path / "toy.safetensors")
    assert header(tmp_path / "toy.safetensors", "pfstorer_restorer")["family"] == "toy"
    again = restorer_files.load(tmp_path / "toy.safetensors")
    assert isinstance(again, family.ToyRestorer)
    assert again.info.size == 64
    for key, weight in restorer.weights().items():
        assert torch.equal(again.weights()[key], weight)


def test_without_them_the_files_are_named(toys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_toy(toys[0], tmp_path / FILE)
    monkeypatch.delitem(FAMILIES, "toy")
    with pytest.raises(
        PFStorerError, match=r"'toy.safetensors' is of the family of restorers 'toy'"
    ):
        host.load_base_restorer(path)


class _Noise:
    """Pictures of noise."""

    def __init__(self, size: int) -> None:
        self.size = size

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, 3, self.size, self.size, generator=generator)
