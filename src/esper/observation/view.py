"""One encoded observation, read by name."""

from __future__ import annotations

import numpy as np

from esper.lifecycle import Stage
from esper.observation.encoding import features_size
from esper.observation.fields import PROSPECT_FIELDS, RUN_FIELDS, RUN_SIZE, SLOT_FIELDS, SLOT_SIZE, UNKNOWN, Encoded

_RUN_INDEX = {f.name: i for i, f in enumerate(RUN_FIELDS)}
_SLOT_INDEX = {f.name: i for i, f in enumerate(SLOT_FIELDS)}
_PROSPECT_INDEX = {f.name: i for i, f in enumerate(PROSPECT_FIELDS)}


class ObservationView:
    """One encoded observation, read by name; ``None`` stands for a value that is not known.

    Rule-based policies read observations through it, so they see exactly what a learned policy sees.

    Args:
        features: The encoded numbers, ``[24 + 34·S]``.
        blueprints: Blueprint index of each slot, ``[S]``.
        prospects: What is known of each blueprint in each slot, ``[S, 13, P]``; ``None`` where nothing is.

    Example:
        >>> from esper.observation import RunReading, SlotReading, encode
        >>> slot = SlotReading(kind="vector", channels=8, positions=1, depth=0.0)
        >>> history = {"decision": 1, "horizon": 10, "scores": [0.5], "train_losses": [1.0], "val_losses": [1.0]}
        >>> run = RunReading(**history, host_params=100, added_params=0, rent=0.02, slots=[slot])
        >>> view = ObservationView(*encode(run))
        >>> view["score"], view["budget"], view.slot(0, "kind_vector")
        (0.5, None, 1.0)
    """

    def __init__(self, features: np.ndarray, blueprints: np.ndarray, prospects: np.ndarray | None = None) -> None:
        self.num_slots = len(blueprints)
        if features.shape != (features_size(self.num_slots),):
            raise ValueError(
                f"expected {features_size(self.num_slots)} features for {self.num_slots} slots, got {features.shape}"
            )
        self._features = features
        self._blueprints = blueprints
        self._prospects = prospects

    def __getitem__(self, name: str) -> Encoded:
        return self._read(_RUN_INDEX[name])

    def slot(self, slot: int, name: str) -> Encoded:
        """The number ``name`` of one slot, as :data:`SLOT_FIELDS` describes it."""
        return self._read(RUN_SIZE + SLOT_SIZE * slot + _SLOT_INDEX[name])

    def stage(self, slot: int) -> Stage:
        """Stage of one slot."""
        start = RUN_SIZE + SLOT_SIZE * slot
        return Stage(int(np.argmax(self._features[start : start + len(Stage)])))

    def blueprint(self, slot: int) -> int:
        """Index of a slot's blueprint, −1 when it is empty."""
        return int(self._blueprints[slot])

    def prospect(self, slot: int, blueprint: int, name: str) -> Encoded:
        """The number ``name`` of a blueprint in a slot, as :data:`PROSPECT_FIELDS` describes it."""
        if self._prospects is None:
            return None
        return _known(self._prospects[slot, blueprint, _PROSPECT_INDEX[name]])

    def _read(self, index: int) -> Encoded:
        return _known(self._features[index])


def _known(number: float) -> Encoded:
    return None if number == UNKNOWN else float(number)
