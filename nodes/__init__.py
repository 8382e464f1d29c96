"""ComfyUI nodes: each checks its inputs, calls `pfstorer_core` and wraps the result."""

from .degrade import Degrade
from .demo import DemoAlbum, DemoGroup, DemoPortrait
from .find_people import FindPeople
from .identity import ApplyPersonalization, LoadIdentity, SaveIdentity
from .load import LoadBaseRestorer, LoadCFWDecoder
from .measure import Compare
from .people import MatchPeople, RestorePeople
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
    FindPeople,
    MatchPeople,
    RestorePeople,
    Compare,
    Degrade,
    DemoPortrait,
    DemoGroup,
    DemoAlbum,
]
