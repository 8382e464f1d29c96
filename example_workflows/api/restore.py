"""Restores a photo on a running ComfyUI.

    python restore.py old.jpg --output restored.png
    python restore.py old.jpg --adapter ann.safetensors --scale 4 \
        --restorer stablesr_768v_000139.ckpt --checkpoint v2-1_768-ema-pruned.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comfyui_queue import ComfyUI, ComfyUIError, Prompt, find, read_prompt


def build(options: argparse.Namespace, photo: str) -> Prompt:
    """Returns the prompt of the template restore_photo with the user's photo and choices."""
    prompt = read_prompt("restore_photo.json")
    load = find(prompt, "PFStorerLoadBaseRestorer")
    restore = find(prompt, "PFStorerTiledRestore")
    save = find(prompt, "SaveImage")
    prompt = {node: prompt[node] for node in (load, restore, save)}
    prompt[load]["inputs"] |= {"restorer": options.restorer, "checkpoint": options.checkpoint}
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    prompt[restore]["inputs"] |= {
        "image": ["photo", 0],
        "scale": options.scale,
        "steps": options.steps,
        "seed": options.seed,
    }
    if options.adapter:
        prompt["adapter"] = {
            "class_type": "PFStorerLoadIdentity",
            "inputs": {"file_name": options.adapter},
        }
        prompt["person"] = {
            "class_type": "PFStorerApplyPersonalization",
            "inputs": {
                "model": [load, 0],
                "adapter": ["adapter", 0],
                "gamma": options.gamma,
                "start": 0.0,
                "end": 1.0,
            },
        }
        prompt[restore]["inputs"]["model"] = ["person", 0]
    return prompt


def restore(options: argparse.Namespace) -> None:
    """Uploads the photo, runs the prompt and saves the result.

    Raises:
        ComfyUIError: something is missing or failed.
    """
    server = ComfyUI(options.server)
    server.require_nodes(build(options, ""))
    prompt = build(options, server.upload(options.photo))
    prompt_id = server.queue(prompt)
    try:
        outputs = server.wait(prompt, prompt_id)
    except KeyboardInterrupt:
        server.stop(prompt_id)
        raise
    # An animated picture has several frames.
    for number, picture in enumerate(outputs[find(prompt, "SaveImage")]["images"], 1):
        path = options.output
        if number > 1:
            path = path.with_stem(f"{path.stem}_{number}")
        server.download(picture, path)
        print(f"Restored: {path}")


def main() -> None:
    """Reads the command line and restores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of ComfyUI")
    parser.add_argument("--restorer", default="mini (bundled)", help="in models/pfstorer_restorers")
    parser.add_argument("--checkpoint", default="bundled in restorer", help="in models/checkpoints")
    parser.add_argument("--adapter", help="the person's, in models/pfstorer_identities")
    parser.add_argument("--gamma", type=float, default=1.0, help="strength of the adapter")
    parser.add_argument("--scale", type=float, default=1.0, help="output size / input size")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("restored.png"))
    try:
        restore(parser.parse_args())
    except (ComfyUIError, OSError) as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit("Stopped.")


if __name__ == "__main__":
    main()
