"""Memory that pieces of earlier photos take is given back when the next photo comes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from archiving.host import TRIMMING
from setup_host import REPO

FREED = 100  # MiB

# a process of its own: the handler would stay in this one
IN_COMFYUI = f"""
import sys
from in_process import start_prompt_server, use_comfyui
use_comfyui()
loop = start_prompt_server()
import nodes, psutil, server

assert loop.run_until_complete(nodes.load_custom_node(sys.argv[1]))
memory = lambda: psutil.Process().memory_info().rss / 2**20
pieces = [b"x" * 2**16 for _ in range(2 * 16 * {FREED})]
del pieces[1::2]
before = memory()
prompt = server.PromptServer.instance.trigger_on_prompt({{"prompt": {{"1": "node"}}}})
print(before - memory(), prompt)
"""


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="of glibc alone"
)
def test_freed_memory_is_given_back_when_a_prompt_comes(comfyui: Path) -> None:
    command = [sys.executable, "-c", IN_COMFYUI, str(TRIMMING)]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    done = subprocess.run(
        command,
        cwd=REPO / "scripts",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given_back, prompt = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert float(given_back) > 0.8 * FREED
    assert prompt == "{'prompt': {'1': 'node'}}"
