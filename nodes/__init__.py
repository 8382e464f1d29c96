"""ComfyUI nodes: each checks its inputs, calls `pfstorer_core` and wraps the result."""

from .degrade import Degrade
from .demo import DemoAlbum, DemoGroup, DemoPortrait
from .identity import ApplyPersonalization, LoadIdentity, SaveIdentity
from .load import LoadBaseRestorer, LoadCFWDecoder
from .measure import Compare
from .restore import ConditionOnLQ, TiledRestore
from .train import TrainIdentityAdapter

NODES = [
    LoadBaseRestorer,
    LoadCFWDecoder,
    ConditionOnLQ,
    TiledRestore,
    TrainIdentityAdapter,
    SaveIdentity,
    LoadIdentity,
    ApplyPersonalization,
    Compare,
    Degrade,
    DemoPortrait,
    DemoGroup,
    DemoAlbum,
]
