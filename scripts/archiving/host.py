"""A worker's own ComfyUI: it stays alive between photos, and ends with the worker."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from comfyui_client import TEXT_EVENT, Client
from comfyui_queue import ComfyUIError, PromptRefused, title
from comfyui_server import PACK, Server
from PIL import Image
from setup_host import REPO

from pfstorer_core.errors import PFStorerError, first_line
from pfstorer_core.pictures.reading import read_picture

from .pictures import read_bytes
from .workflow import IDENTITIES, Workflow

GUARD = Path(__file__).with_name("guard.py")
TRIMMING = Path(__file__).with_name("trimming.py")
ADAPTERS = "pfstorer_identities"  # folder of ComfyUI's models
STARTS = 3  # times that ComfyUI is started before the run ends


class HostError(Exception):
    """ComfyUI does not start or refuses the workflow: every photo would fail, and the run ends."""


@dataclass(frozen=True)
class Place:
    """Where a worker finds ComfyUI.

    Attributes:
        comfyui: its folder.
        base: folder whose `models` and `custom_nodes` the workflow uses.
        timeout: seconds for a photo.
        identities: folder of adapters that are found beside those in `base`, or None.
    """

    comfyui: Path
    base: Path
    timeout: float
    identities: Path | None = None


@dataclass(frozen=True)
class Restored:
    """What a workflow made of a picture.

    Attributes:
        picture: RGB.
        lines: what its nodes say of it.
        seconds: that ComfyUI took.
    """

    picture: Image.Image
    lines: list[str]
    seconds: float


class GuardedServer(Server):
    """A ComfyUI that ends with the process that started it, however that ends."""

    # oneDNN keeps 1024 compiled operations, of many sizes of photos, which take 0.3 GiB; those of
    # one photo are compiled in no time. glibc gives larger blocks back at once (in bytes: from
    # which size on, and how much may be free at a heap's end), TRIMMING the rest between photos;
    # huge pages make up for the time that new pages take.
    environment: ClassVar[dict[str, str]] = {
        **Server.environment,
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    _guard: subprocess.Popen[bytes] | None = None

    def _wait_until_ready(self) -> None:
        command = [sys.executable, "-S", "-E", str(GUARD), str(self.pid), str(self.base)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._guard.wait()  # it goes on in a process of its own
        super()._wait_until_ready()

    def stop(self) -> None:
        """Stops the process and everything that it started, and removes its base folder."""
        super().stop()
        guard, self._guard = self._guard, None
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()


class Host:
    """Runs a workflow photo by photo. Starts ComfyUI when it is first needed.

    Several threads may use it: ComfyUI has one photo, while others are packed and unpacked.

    Args:
        place: of ComfyUI.
        workflow: the workflow.
    """

    def __init__(self, place: Place, workflow: Workflow) -> None:
        self.place, self.workflow = place, workflow
        self.server: GuardedServer | None = None
        self._client: Client | None = None
        self._numbers = itertools.count()
        self._turn = threading.Lock()

    def restore(self, picture: Image.Image) -> Restored:
        """Returns what the workflow makes of a picture.

        Args:
            picture: upright, RGB.

        Raises:
            PFStorerError: the workflow failed on this picture.
            HostError: no picture can be restored.
        """
        packed = io.BytesIO()
        picture.save(packed, "PNG", compress_level=1)
        with self._turn:
            server, client = self._started()
            began = time.monotonic()  # a start counts for no photo
            content, lines = self._restored(server, client, packed.getvalue())
            seconds = time.monotonic() - began
        return Restored(read_picture(content, "the result"), lines, seconds)

    def _restored(self, server: Server, client: Client, packed: bytes) -> tuple[bytes, list[str]]:
        name = f"{next(self._numbers)}.png"  # a new one each time, or ComfyUI answers by heart
        source = server.base / "input" / name
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(packed)
        try:
            return self._run(server, client, name)
        except PromptRefused as error:
            raise HostError(" ".join(str(error).splitlines())) from error
        except (ComfyUIError, OSError) as error:  # it ended, or hangs: the next photo needs another
            end = (server.log().strip().splitlines() or [""])[-1]
            self.stop()
            raise PFStorerError(
                f"ComfyUI gave no answer ({first_line(error)}); its log ends with {end!r}."
            ) from error
        finally:
            source.unlink(missing_ok=True)

    def _run(self, server: Server, client: Client, name: str) -> tuple[bytes, list[str]]:
        prompt = self.workflow.of(name)
        run = client.run(prompt, timeout=self.place.timeout)
        # ComfyUI keeps what it did, thousands of runs of it.
        client.post("/history", {"delete": [run.prompt_id]})
        images = run.outputs.get(self.workflow.result, {}).get("images", [])
        paths = [
            server.base / image["type"] / image["subfolder"] / image["filename"]
            for image in run.images
        ]
        try:
            if run.status != "success":
                error = run.error or {"node_id": "", "exception_message": run.status}
                node = title(prompt, str(error["node_id"]))
                reason = " ".join(str(error["exception_message"]).split())
                raise PFStorerError(f"{node}: {reason}")
            if len(images) != 1:
                raise PFStorerError(f"The workflow gave {len(images)} pictures in place of one.")
            saved = server.base / images[0]["type"] / images[0]["subfolder"]
            restored = read_bytes(saved / images[0]["filename"])
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
        texts = {data["node"]: data["text"] for data in run.of_type(TEXT_EVENT)}
        shown = [*texts.values(), *("\n".join(o.get("text", ())) for o in run.outputs.values())]
        lines = [line.strip() for text in shown for line in text.splitlines()]
        return restored, list(dict.fromkeys(line for line in lines if line))

    def _started(self) -> tuple[Server, Client]:
        for attempt in range(STARTS):
            if self.server is not None and self._client is not None:
                return self.server, self._client
            try:
                self._start()
            except (ComfyUIError, OSError) as error:
                self.stop()
                if attempt == STARTS - 1:
                    raise HostError(f"ComfyUI does not start: {error}") from error
        raise AssertionError("unreachable")

    def _start(self) -> None:
        base = Path(tempfile.mkdtemp(prefix="pfstorer-archive-"))
        link_base(self.place.base, base, self.place.identities)
        # Else ComfyUI keeps what it made of all photos until memory is nearly full, or on a machine
        # with very much of it until 128 GB are left.
        options = ["--preview-method", "none", "--disable-metadata", "--cache-classic"]
        python = Path(sys.executable)
        self.server = GuardedServer(
            self.place.comfyui, python, base, cpu=not _has_gpu(), options=options
        )
        self.server.start()
        self._client = Client(self.server.url)

    def stop(self) -> None:
        """Ends ComfyUI and removes its folder."""
        client, self._client = self._client, None
        server, self.server = self.server, None
        if client is not None:
            client.close()
        if server is not None:
            server.stop()
            shutil.rmtree(server.base, ignore_errors=True)


def _has_gpu() -> bool:
    """Whether torch has a device, asked in a process of its own: torch would stay in this one.

    Raises:
        HostError: torch cannot be imported.
    """
    asked = subprocess.run(
        [sys.executable, "-c", "from in_process import has_gpu; print(has_gpu())"],
        cwd=REPO / "scripts",
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise HostError(f"PyTorch does not start: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.split()[-1] == "True"


def link_base(base: Path, scratch: Path, identities: Path | None = None) -> None:
    """Gives a scratch folder the models and custom nodes of a base folder, and our one for memory.

    Args:
        base: of a ComfyUI; it is not changed.
        scratch: folder that a worker's ComfyUI uses for all that it writes.
        identities: folder of more adapters, found as IDENTITIES among them.
    """
    adapters = scratch / "models" / ADAPTERS
    adapters.mkdir(parents=True)
    _link_all(base / "models", scratch / "models", without=lambda path: path.name == ADAPTERS)
    _link_all(base / "models" / ADAPTERS, adapters, without=lambda path: path.name == IDENTITIES)
    if identities is not None:
        (adapters / IDENTITIES).symlink_to(identities.resolve(), target_is_directory=True)
    (scratch / "custom_nodes").mkdir()
    (scratch / "custom_nodes" / f"{PACK}-{TRIMMING.name}").symlink_to(TRIMMING)
    _link_all(
        base / "custom_nodes",
        scratch / "custom_nodes",
        without=lambda path: path.name == PACK or path.resolve() == REPO.resolve(),
    )


def _link_all(folder: Path, place: Path, without: Callable[[Path], bool]) -> None:
    """Links what is in a folder, where there is one."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not without(path) and not path.name.startswith((".", "__")):
            (place / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
