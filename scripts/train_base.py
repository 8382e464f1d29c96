"""Trains a base restorer on photos: encoder and SFT blocks for a frozen Stable Diffusion.

    python scripts/train_base.py --checkpoint v2-1_512-ema-pruned.safetensors \\
        --photos my_photos --name my_restorer

The result, my_restorer.safetensors, goes into ComfyUI's models/pfstorer_restorers. Runs in
ComfyUI's environment (scripts/setup_host.py makes one); for several GPUs or machines start it with
`accelerate launch`. An interrupted run goes on when started again with the same --out.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from in_process import use_comfyui
from setup_host import REPO


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="Stable Diffusion 1.5, 2.1 or XL checkpoint"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        required=True,
        help="folders (with subfolders) or tar files of good photos",
    )
    parser.add_argument(
        "--tight", nargs="+", default=[], help="names of folders whose photos are all face"
    )
    parser.add_argument("--name", required=True, help="name of the restorer and its file")
    parser.add_argument(
        "--out", type=Path, default=REPO / "runs" / "base", help="folder of the run"
    )
    parser.add_argument(
        "--size", type=int, default=512, help="side of the training views in pixels"
    )
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=8, help="pairs per step and device")
    parser.add_argument(
        "--pairs", type=int, default=20_000, help="newest (clean, LQ) pairs that steps draw from"
    )
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--max-seconds", type=float, help="stop and save after this time")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Trains, or goes on with a training, and writes the restorer."""
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    use_comfyui()
    import comfy.sd

    from pfstorer_core.degradation.presets import PRESETS
    from pfstorer_core.host.train.base import BaseTraining, NewRestorer, Pairs, train_base_restorer
    from pfstorer_core.pictures.photos import list_photos
    from pfstorer_core.restorers.files import save
    from pfstorer_core.training.base import BaseTrainingConfig
    from pfstorer_core.training.loop import LoopConfig
    from pfstorer_core.training.photo_views import PhotoViews

    photos = list_photos(options.photos, smallest=options.size / 2)
    logging.info("%d photos", len(photos))
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(options.checkpoint))
    views = PhotoViews(photos, options.size, options.tight)
    loop = LoopConfig(
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=min(500, options.steps // 10),
        ema_decay=0.9999,
        mixed_precision=options.mixed_precision,
        capture=True,
        check_every=10,
        seed=options.seed,
    )
    restorer, done = train_base_restorer(
        (model, clip, vae),
        NewRestorer(options.name),
        Pairs(views, [(1.0, PRESETS["face"])], options.pairs, options.workers),
        BaseTraining(loop, BaseTrainingConfig(batch=options.batch), options.max_seconds),
        options.out,
    )
    path = options.out / f"{options.name}.safetensors"
    save(restorer, path)
    logging.info("%s written%s", path, "" if done else "; not finished, run again to go on")


if __name__ == "__main__":
    main()
