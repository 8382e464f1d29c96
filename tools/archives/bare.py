"""A bare loop: photos through one ComfyUI, one after another, without an engine or a list.

python bare.py WORKFLOW BASE OUTPUT FILES   prints when each was restored, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parents[1]))

import repository  # noqa: F401
from archiving.host import Host, Place
from archiving.pictures import BY_EXTENSION, encoded, read_bytes, read_original
from archiving.workflow import Workflow
from setup_host import find_comfyui

from pfstorer_core.errors import PFStorerError


def main() -> None:
    """Runs the loop."""
    described, base, output, files = sys.argv[1:5]
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    workflow = Workflow(**json.loads(Path(described).read_text(encoding="utf-8")))
    host = Host(Place(comfyui, Path(base), 3600), workflow)
    Path(output).mkdir(parents=True, exist_ok=True)
    ends = []
    for number, path in enumerate(map(Path, json.loads(Path(files).read_text(encoding="utf-8")))):
        try:
            original = read_original(read_bytes(path), path.name)
            restored = host.restore(original.picture).picture
            kind = BY_EXTENSION[path.suffix.lower()]
            place = Path(output, f"{number}{path.suffix}")
            place.write_bytes(encoded(original, restored, kind, 95))
            ends.append(time.time())
        except PFStorerError:
            pass
    host.stop()
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
