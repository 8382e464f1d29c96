"""Makes ComfyUI's own modules importable, as inside the host, and loads this plugin as it does."""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from comfyui_server import PACK, link_pack
from device import compute_exactly
from loaded_pack import Pack
from setup_host import REPO, find_comfyui


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the import of `comfy`, which test modules may do at their top."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise pytest.UsageError(
            "no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH, "
            "or run tests/unit alone"
        )
    # ComfyUI first and this repository last: `import nodes` is ComfyUI's module, not our folder.
    root = str(REPO)
    sys.path[:] = [str(comfyui), *(path for path in sys.path if path not in ("", root)), root]

    from comfy.cli_args import args

    args.cpu = not config.getoption("gpu")
    args.base_directory = tempfile.mkdtemp(prefix="pfstorer-tests-")
    config.add_cleanup(lambda: shutil.rmtree(args.base_directory, ignore_errors=True))

    # As early as in ComfyUI's own start: in 0.20 its `nodes` puts another `utils` before this one.
    import utils  # noqa: F401

    if not args.cpu:
        compute_exactly()


@pytest.fixture(scope="session")
def base_directory() -> Path:
    """ComfyUI's base directory in this process; `models/`, `input/` and `output/` lie in it."""
    from comfy.cli_args import args

    return Path(args.base_directory)


@pytest.fixture(scope="session")
def pack(base_directory: Path) -> Pack:
    """The plugin, loaded by ComfyUI's own loader."""
    import nodes

    place = link_pack(base_directory)
    loaded = asyncio.run(nodes.load_custom_node(str(place)))
    assert loaded, f"ComfyUI could not load {PACK}; see the log above"
    name = next(
        name
        for name, module in sys.modules.items()
        if getattr(module, "__file__", None) == str(place / "__init__.py")
    )
    return Pack(name)
