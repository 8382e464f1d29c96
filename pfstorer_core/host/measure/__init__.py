"""Finds faces and chooses what identities are compared with."""
