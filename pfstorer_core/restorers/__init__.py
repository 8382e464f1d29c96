"""Base restorers: their weights, their files, and the families that there are."""
