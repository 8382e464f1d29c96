"""Synthetic degradation: sharp pictures to low-quality (LQ) ones."""
