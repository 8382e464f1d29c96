import sys

from comfyui_client import PACK, REPO
from setup_host import DEFAULT_VERSION, RELEASES, requirement_lines, requirement_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_and_the_managers_read_the_same_requirements() -> None:
    assert requirement_lines(REPO / "requirements.txt") == PYPROJECT["project"]["dependencies"]


def test_torch_is_left_to_comfyui() -> None:
    names = {requirement_name(line) for line in requirement_lines(REPO / "requirements.txt")}
    assert not names & {"torch", "torchvision", "torchaudio", "numpy"}


def test_the_pack_is_tested_under_its_registry_name() -> None:
    assert PYPROJECT["project"]["name"] == PACK


def test_the_supported_floor_is_a_release_that_the_matrix_runs() -> None:
    floor = PYPROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert floor in RELEASES
    assert DEFAULT_VERSION in RELEASES
