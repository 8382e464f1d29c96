"""Trains the adapter of a person on a running ComfyUI.

    python train.py ann/*.jpg --name ann
    python train.py ann/*.jpg --name ann --restorer stablesr_768v_000139.ckpt \
        --checkpoint v2-1_768-ema-pruned.safetensors

Ctrl-C stops the training; the same command goes on with it. Then restore with
`python restore.py old.jpg --adapter ann.safetensors`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comfyui_queue import ComfyUI, ComfyUIError, Prompt, find, read_prompt

LIST = 10  # inputs that one Create List takes


def build(options: argparse.Namespace, photos: list[str]) -> Prompt:
    """Returns the prompt of the template train_identity with the user's photos and choices."""
    prompt = read_prompt("train_identity.json")
    load = find(prompt, "PFStorerLoadBaseRestorer")
    train = find(prompt, "PFStorerTrainIdentityAdapter")
    save = find(prompt, "PFStorerSaveIdentity")
    report = find(prompt, "SaveImage")
    prompt = {node: prompt[node] for node in (load, train, save, report)}
    prompt[load]["inputs"] |= {"restorer": options.restorer, "checkpoint": options.checkpoint}
    for number, photo in enumerate(photos):
        prompt[f"photo{number}"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    # A list and no batch: the photos may differ in size.
    nodes = [f"photo{number}" for number in range(len(photos))]
    while len(nodes) > 1:
        groups = [nodes[k : k + LIST] for k in range(0, len(nodes), LIST)]
        nodes = [f"list{len(prompt) + k}" for k in range(len(groups))]
        for node, group in zip(nodes, groups, strict=True):
            inputs = {f"inputs.input{k}": [entry, 0] for k, entry in enumerate(group)}
            prompt[node] = {"class_type": "CreateList", "inputs": inputs}
    prompt[train]["inputs"] |= {
        "photos": [nodes[0], 0],
        "name": options.name,
        "preset": options.preset,
        "steps": options.steps,
        "batch": options.batch,
        "checkpointing": options.checkpointing,
        "preview_every": 0,
    }
    prompt[save]["inputs"] |= {"file_name": options.name, "overwrite": options.overwrite}
    return prompt


def train(options: argparse.Namespace) -> None:
    """Uploads the photos and trains.

    Raises:
        ComfyUIError: something is missing or failed.
    """
    server = ComfyUI(options.server)
    server.require_nodes(build(options, ["", ""]))
    prompt = build(options, [server.upload(photo) for photo in options.photos])
    prompt_id = server.queue(prompt)
    print(
        f"Training with {len(options.photos)} photo(s); ComfyUI's page shows step, loss and time "
        "left. Ctrl-C stops, and the same command goes on later.",
        flush=True,
    )
    try:
        outputs = server.wait(prompt, prompt_id)
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
        server.stop(prompt_id)
        raise
    (picture,) = outputs[find(prompt, "SaveImage")]["images"]
    server.download(picture, options.report)
    print(f"{outputs[find(prompt, 'PFStorerSaveIdentity')]['text'][0]} on the server.")
    print(f"Loss and an example: {options.report}")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="+", help="sharp photos of one person")
    parser.add_argument("--name", required=True, help="of the person and the adapter's file")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of ComfyUI")
    parser.add_argument("--restorer", default="mini (bundled)", help="in models/pfstorer_restorers")
    parser.add_argument("--checkpoint", default="bundled in restorer", help="in models/checkpoints")
    parser.add_argument("--preset", default="standard", help="see Train Identity Adapter's help")
    parser.add_argument("--steps", type=int, default=0, help="0: as the preset says")
    parser.add_argument("--batch", type=int, default=4, help="views per step; fewer: less memory")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter of that name")
    parser.add_argument("--report", type=Path, default=Path("training.png"))
    try:
        train(parser.parse_args())
    except (ComfyUIError, OSError) as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        print("Stopped. Run the same command again, and the training goes on where it stopped.")
        sys.exit(130)


if __name__ == "__main__":
    main()
