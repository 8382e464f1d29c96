"""ComfyUI nodes: each checks its inputs, calls `pfstorer_core` and wraps the result."""

from .demo import DemoPortrait
from .identity import (
    ApplyPersonalization,
    LoadIdentity,
    SaveIdentity,
    TrainIdentityAdapter,
)
from .load import LoadBaseRestorer
from .restore import ConditionOnLQ, TiledRestore

NODES = [
    LoadBaseRestorer,
    ConditionOnLQ,
    TiledRestore,
    TrainIdentityAdapter,
    SaveIdentity,
    LoadIdentity,
    ApplyPersonalization,
    DemoPortrait,
]
