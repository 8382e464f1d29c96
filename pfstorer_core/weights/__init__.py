"""Weight files: read without running code of theirs, written whole or not at all."""
