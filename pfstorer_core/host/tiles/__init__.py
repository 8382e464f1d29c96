"""Cuts a sampling, its conditions and the VAE's work into tiles."""
