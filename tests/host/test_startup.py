"""What the plugin costs ComfyUI's start: nothing heavy is imported, nothing asks the network."""

import json
import subprocess
import sys

import pytest
from comfyui_server import PACK
from environments import requirement_lines, requirement_name
from registry_archive import unpack
from setup_host import REPO

HEAVY = {
    "accelerate",
    "diffusers",
    "matplotlib",
    "onnxruntime",
    "piq",
    "tensorboard",
    "torchmetrics",
}


@pytest.fixture(scope="module", params=["checkout", "archive"])
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the benchmark says of loading the plugin, or its archive, in a fresh process."""
    command = [sys.executable, str(REPO / "benchmarks" / "startup.py")]
    base = tmp_path_factory.mktemp("start")
    if request.param == "archive":
        unpack(base / "custom_nodes" / PACK)
    done = subprocess.run([*command, str(base)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_the_plugin_imports_nothing_heavy(load: dict) -> None:
    assert load["own"] > 20, "the plugin itself is loaded"
    packages = {name.partition(".")[0] for name in load["foreign"]}
    assert packages & HEAVY == set()


def test_the_heavy_packages_are_those_of_the_requirements() -> None:
    required = {requirement_name(x) for x in requirement_lines(REPO / "requirements.txt")}
    light = {"einops", "filelock", "kornia", "pillow", "safetensors"}  # ComfyUI imports them itself
    assert {name.lower() for name in required} - light <= HEAVY


def test_loading_the_plugin_leaves_the_network_alone(load: dict) -> None:
    assert load["connections"] == []
