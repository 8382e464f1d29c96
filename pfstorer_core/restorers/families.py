"""The families of restorers, by the name that stands in the files we write."""

from .base import FAMILIES
from .stablesr.restorer import StableSRRestorer

# A family is added by its class and an entry here; the first that finds weights of its own in a
# file that names no family takes it.
FAMILIES["stablesr"] = StableSRRestorer
