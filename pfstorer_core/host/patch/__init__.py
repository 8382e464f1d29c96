"""Runs restorers and identities inside ComfyUI's UNet."""
