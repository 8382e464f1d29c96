"""Trainings on a copy of ComfyUI's UNet."""
