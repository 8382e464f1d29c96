"""Restores whole pictures, from pixels to pixels."""
