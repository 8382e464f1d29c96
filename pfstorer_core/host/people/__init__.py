"""Several people in a picture, inside ComfyUI."""
