"""Loads files as ComfyUI's MODEL, CLIP and VAE, and says where they lie."""
