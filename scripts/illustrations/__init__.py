"""The pictures of the help pages; `scripts/help_pictures.py` makes them."""
