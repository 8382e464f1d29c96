"""At which sizes and in which tiles large pictures are restored."""
