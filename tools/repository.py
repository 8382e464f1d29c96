"""Lets the tools import `scripts/` and the core, wherever they are started from.

Both come last on the path: `import nodes` must be ComfyUI's module, not our folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent

for folder in (ROOT / "scripts", ROOT):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
