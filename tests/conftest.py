"""What all kinds of tests share: marks by folder and one real ComfyUI server.

Tests in `unit/` need no ComfyUI. In `host/` and `browser/`, `server` is a process with this plugin;
`host/conftest.py` also makes ComfyUI's own modules importable.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_client import Client
from comfyui_server import Server
from setup_host import find_comfyui

# torch's threads else spin long while they wait: where another program wants the same cores, a run
# takes many times as long. Read when torch is first imported, which is later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

TESTS = Path(__file__).parent
MARKS = {"host": ("host",), "browser": ("host", "browser")}
LOG_TAIL = 4000  # characters


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="let ComfyUI use the GPU")
    screenshots = "keep the browser tests' screenshots; with '=', or pytest takes DIR for tests"
    parser.addoption("--screenshots", metavar="DIR", help=screenshots)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in MARKS.get(item.path.relative_to(TESTS).parts[0], ()):
            item.add_marker(mark)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of ComfyUI."""
    folder = find_comfyui()
    if folder is None:
        pytest.fail("no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    return folder


@pytest.fixture(scope="session")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Server]:
    """A ComfyUI process with this plugin, shared by all tests; its models lie in `base/models`.

    Beside it are nodes that load a tiny SUPIR, which one test needs and none else notices.
    """
    base = tmp_path_factory.mktemp("server")
    (base / "custom_nodes").mkdir()
    shutil.copy(TESTS / "toys" / "tiny_supir_nodes.py", base / "custom_nodes")
    cpu = not pytestconfig.getoption("gpu")
    options = ["--preview-method", "latent2rgb"]
    with Server(comfyui, Path(sys.executable), base, cpu=cpu, options=options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A connection of its own to the server's API."""
    with Client(server.url) as connected:
        yield connected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """Shows the end of the server's log with each failure."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and running is not None:
        report.sections.append(("ComfyUI's log", running.log()[-LOG_TAIL:]))
    return report
