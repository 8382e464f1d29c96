"""Restoration and personalization in plain torch; only `pfstorer_core.host` imports ComfyUI."""
