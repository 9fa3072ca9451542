"""What a controller sees: the observation schema and its encoder.

An observation is ``24 + 34·S`` numbers (24 about the run, 34 about each of the S slots) and, for each slot, the index
of its blueprint (−1 for an empty slot). A value that is not known (yet) is encoded as :data:`UNKNOWN`, which lies
outside the range of every known value, never as a silent zero.
"""

from esper.observation.encoding import encode, encode_prospects, feature_bounds, feature_names, features_size
from esper.observation.fields import (
    CONTRIBUTION_SCALE,
    PROSPECT_FIELDS,
    PROSPECT_SIZE,
    RUN_FIELDS,
    RUN_SIZE,
    SLOT_FIELDS,
    SLOT_SIZE,
    UNKNOWN,
    Field,
    gain_of,
)
from esper.observation.readings import (
    Audition,
    Prospect,
    RunReading,
    SlotReading,
    SlotState,
    SlotStatistics,
    doublings,
    size_ratio,
)
from esper.observation.view import ObservationView

__all__ = [
    "CONTRIBUTION_SCALE",
    "PROSPECT_FIELDS",
    "PROSPECT_SIZE",
    "RUN_FIELDS",
    "RUN_SIZE",
    "SLOT_FIELDS",
    "SLOT_SIZE",
    "UNKNOWN",
    "Audition",
    "Field",
    "ObservationView",
    "Prospect",
    "RunReading",
    "SlotReading",
    "SlotState",
    "SlotStatistics",
    "doublings",
    "encode",
    "encode_prospects",
    "feature_bounds",
    "feature_names",
    "features_size",
    "gain_of",
    "size_ratio",
]
