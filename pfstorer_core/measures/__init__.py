"""Measures of pictures and of who they show, and comparisons made of them."""
