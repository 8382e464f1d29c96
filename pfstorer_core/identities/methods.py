"""The methods of personalization, by the name that stands in the files we write."""

from .base import Method
from .block import PersonalizationBlock
from .config import PersonalizationConfig

PFSTORER = "pfstorer"
# A method is added by its config, its block and an entry here.
METHODS: dict[str, Method] = {PFSTORER: Method(PersonalizationConfig, PersonalizationBlock)}
