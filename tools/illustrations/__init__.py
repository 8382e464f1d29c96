"""The pictures of the help pages; `tools/help_pictures.py` makes them."""
