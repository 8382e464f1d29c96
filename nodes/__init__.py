"""ComfyUI nodes: each checks its inputs, calls `pfstorer_core` and wraps the result."""

from .demo import DemoPortrait
from .identity import ApplyPersonalization, LoadIdentity, SaveIdentity
from .load import LoadBaseRestorer
from .restore import ConditionOnLQ, TiledRestore
from .train import TrainIdentityAdapter

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
