"""Base restorers: what all families share, the families, their files; the mini autoencoder."""

from . import families as families  # whoever imports a restorer knows all families
