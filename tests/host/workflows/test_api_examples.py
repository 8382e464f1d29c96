"""The examples for the API queue, run as a user does, against a real server."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_client import Client
from comfyui_server import PACK, Server
from PIL import Image
from setup_host import REPO
from tiny_models import write_bundled
from torchvision.utils import save_image

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.identities.adapter import IdentityAdapter

API = REPO / "example_workflows" / "api"
TINY = "tiny_api_examples.safetensors"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the examples, copied elsewhere: nothing of the project is around it."""
    folder = Path(shutil.copytree(API, tmp_path_factory.mktemp("elsewhere") / "api"))
    prompt = folder / "train_identity.json"
    few = prompt.read_text().replace('"views_per_photo": 0', '"views_per_photo": 2')
    prompt.write_text(few)  # the scripts run the prompts that lie beside them
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve drawn photos of one person, of two sizes."""
    folder = tmp_path_factory.mktemp("photos of ann")
    paths = []
    for number, picture in enumerate(portrait_set(5_000_000, 12, 1, 96)):
        paths.append(folder / f"photo {number}.PNG")
        save_image(picture if number else picture[:, :72, :84], paths[-1])
    return paths


@pytest.fixture(scope="module")
def common(server: Server) -> list[str]:
    """Arguments of both: the server and a tiny restorer of random weights."""
    write_bundled(server.base / "models" / "pfstorer_restorers" / TINY)
    return ["--server", server.url, "--restorer", TINY]


def start(folder: Path, scripts: Path, script: str, *arguments: Any) -> subprocess.Popen[str]:
    """Starts a script in a Python that has the standard library and the scripts' folder alone."""
    line = f"import sys, runpy; sys.path.insert(0, {str(scripts)!r}); "
    line += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-S", "-c", line, scripts / script, *arguments]
    # A shell's background jobs, and what they start, ignore the signal of Ctrl+C.
    heed = None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    )


def run(folder: Path, scripts: Path, script: str, *arguments: Any) -> tuple[int, str, str]:
    process = start(folder, scripts, script, *arguments)
    out, error = process.communicate(timeout=120)
    assert "Traceback" not in error, error
    return process.returncode, out, error


def test_photos_are_trained_and_the_adapter_restores(
    server: Server, scripts: Path, photos: list[Path], common: list[str], tmp_path: Path
) -> None:
    few = ["--name", "api_ann", "--preset", "quick", "--steps", 4, "--batch", 1, *common]
    code, out, error = run(tmp_path, scripts, "train.py", *photos, *few)
    assert (code, error) == (0, "")
    assert "Saved api_ann.safetensors on the server." in out
    folder = server.base / "models" / "pfstorer_identities"
    info = IdentityAdapter.load(folder / "api_ann.safetensors").info
    assert (info.name, info.photos, info.steps) == ("api_ann", 12, 4)
    assert Image.open(tmp_path / "training.png").size[0] > 100
    assert len(list((server.base / "input" / "pfstorer").iterdir())) == 12

    plain = ["--scale", 2, "--steps", 2, *common]
    person = ["--adapter", "api_ann.safetensors", "--gamma", 2]
    for name, more in (
        ("base.png", []),
        ("ann.png", person),
        ("zero.png", [*person[:2], "--gamma", 0]),
    ):
        code, out, error = run(
            tmp_path, scripts, "restore.py", photos[0], *plain, *more, "--output", f"out/{name}"
        )
        assert (code, error) == (0, "")
        assert f"out{os.sep}{name}" in out
    base, ann, zero = (
        np.asarray(Image.open(tmp_path / "out" / f"{n}.png")) for n in ("base", "ann", "zero")
    )
    assert base.shape == (144, 168, 3)
    assert np.array_equal(base, zero)
    assert not np.array_equal(base, ann)


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_an_interrupted_training_goes_on(
    client: Client,
    server: Server,
    scripts: Path,
    photos: list[Path],
    common: list[str],
    tmp_path: Path,
) -> None:
    arguments = [*photos[:2], "--name", "late", "--preset", "quick", "--steps", 40, "--batch", 1]
    process = start(tmp_path, scripts, "train.py", *arguments, *common)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Training with 2 photo(s)")
    queue = client.get("/queue")
    (entry,) = [*queue["queue_running"], *queue["queue_pending"]]

    class Under(Exception):
        """The training is under way."""

    def look(event: dict[str, Any]) -> None:
        if re.match(r"Step \d+ of 40", event["data"].get("text", "")):
            raise Under

    with pytest.raises(Under):  # ComfyUI's page is told though the script listens to nothing
        client.follow(entry[1], timeout=60, on_event=look)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert "the training goes on where it stopped" in out

    going_on = server.log().count("Going on with the unfinished training")
    code, out, error = run(tmp_path, scripts, "train.py", *arguments, *common)
    assert (code, error) == (0, "")
    assert server.log().count("Going on with the unfinished training") == going_on + 1
    path = server.base / "models" / "pfstorer_identities" / "late.safetensors"
    assert IdentityAdapter.load(path).info.steps == 40


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["--restorer", "gone.ckpt"], ["Load Base Restorer: Value not in list: restorer"]),
        (
            ["--scale", "99", "--steps", "0"],
            [
                "Tiled Restore: Value 99.0 bigger than max",
                "Tiled Restore: Value 0 smaller than min",
            ],
        ),
        (["--adapter", "nobody.safetensors"], ["PFStorerLoadIdentity: Value not in list"]),
        (["--output", "."], ["error: "]),
    ],
)
def test_a_wrong_choice_is_named(
    scripts: Path,
    photos: list[Path],
    common: list[str],
    tmp_path: Path,
    arguments: list[str],
    sentences: list[str],
) -> None:
    code, _, error = run(
        tmp_path, scripts, "restore.py", photos[0], "--steps", 1, *common, *arguments
    )
    assert code == 1
    assert error.startswith("error: ")
    for sentence in sentences:
        assert sentence in error


def test_a_failing_node_says_why(
    server: Server, scripts: Path, common: list[str], tmp_path: Path
) -> None:
    (tmp_path / "no photo.png").write_text("nothing")
    code, _, error = run(tmp_path, scripts, "restore.py", tmp_path / "no photo.png", *common)
    assert code == 1
    assert error.startswith("error: LoadImage: ")


def test_a_missing_photo_server_or_node_is_named(
    server: Server, scripts: Path, photos: list[Path], common: list[str], tmp_path: Path
) -> None:
    code, _, error = run(tmp_path, scripts, "restore.py", "gone.jpg", *common)
    assert code == 1 and error.startswith("error: gone.jpg cannot be read")
    for address in ("http://127.0.0.1:1", "127.0.0.1:1/"):
        code, _, error = run(tmp_path, scripts, "restore.py", photos[0], "--server", address)
        assert code == 1
        assert error.startswith("error: No ComfyUI answers at http://127.0.0.1:1 (")
    prompt = (scripts / "train_identity.json").read_text()
    newer = shutil.copytree(scripts, tmp_path / "newer")
    (newer / "train_identity.json").write_text(
        prompt.replace('"PFStorerSaveIdentity"', '"PFStorerKeepIdentity"').replace(
            "SaveIdentity", "KeepIdentity"
        )
    )
    script = (newer / "train.py").read_text().replace("SaveIdentity", "KeepIdentity")
    (newer / "train.py").write_text(script)
    code, _, error = run(tmp_path, newer, "train.py", photos[0], "--name", "x", *common)
    assert code == 1 and "has no node PFStorerKeepIdentity; install or update" in error


def test_templates_are_listed_without_the_scripts(client: Client) -> None:
    listed = client.get("/api/workflow_templates")[PACK]
    assert sorted(listed) == sorted(path.stem for path in API.parent.glob("*.json"))
    assert io.BytesIO(client.request(f"/api/workflow_templates/{PACK}/api/README.md")).read()
