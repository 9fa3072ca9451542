"""TensorBoard's files, read back."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(directory):
    """Name → (step, value) of all numbers and texts."""
    found = EventAccumulator(str(directory)).Reload()
    scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    texts = {
        name: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(name)]
        for name in found.Tags()["tensors"]
    }
    return scalars | texts
