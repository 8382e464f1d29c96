"""Stable Diffusion as diffusers writes it: a folder of parts."""

from pathlib import Path

DIFFUSERS_INDEX = "model_index.json"  # which every such folder has
STEMS = {  # of the weight files, by part
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
}
# In the order in which ComfyUI's loader looks for them.
_ENDINGS = (".fp16.safetensors", ".safetensors", ".fp16.bin", ".bin")


def folder_files(folder: Path) -> dict[str, Path]:
    """Returns the weight files of a folder that ComfyUI's loader reads, by part."""
    found = {}
    for part, stems in STEMS.items():
        places = (folder / part / (stem + ending) for ending in _ENDINGS for stem in stems)
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            found[part] = file
    return found
