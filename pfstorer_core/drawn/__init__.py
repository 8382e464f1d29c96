"""Drawn people: portraits, group photos and albums without a photo of anybody."""
