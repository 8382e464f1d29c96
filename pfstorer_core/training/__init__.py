"""Training loops of the base restorer and its parts, on accelerate and diffusers."""
