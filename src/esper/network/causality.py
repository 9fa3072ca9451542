"""Whether the positions of a slot may see later ones: a seed looks ahead only where the host does.

A *stream* is what the positions of the model follow: an input of the model, or an embedding of tokens that the model
made itself (a decoder that shifts its labels). Other values are put into its last positions, and into its first one:

- *looks ahead*: earlier positions of some tensor change with later ones of the stream, so seeds may look ahead too;
- *causal*: they never do, but later ones change with earlier ones; so must it be for a seed;
- *by itself*: every position of every tensor follows its own position of the stream alone. If the model then pools them
  into one output per sample, there is nothing that a seed could see too early; if not, it cannot be told: a tagger may
  look ahead, a predictor of the next token must not.

A slot is causal if any stream that it depends on is: a decoder that reads all of an encoder is still not to see its own
next token. All tensors of the model count, not only the slot's: the embedding of a model that looks ahead later sees
nothing ahead itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from torch import Tensor, nn

from esper.network.example import Input, Key, Samples, Trace, apart, disturbed

Verdict = Literal["causal", "partly", "ahead", "alone"]


@dataclass
class _Stream:
    """Traces with other values in a part of one stream.

    Args:
        length: Number of positions.
        last: By a position: the trace with all positions from there on disturbed.
        first: The trace with position 0 disturbed.
    """

    length: int
    last: dict[int, Trace]
    first: Trace

    def before(self, cut: int, positions: int) -> slice:
        """The positions of a tensor that are surely before ``cut`` in the stream.

        Of a tensor with another number of positions all but what the last position may have become.
        """
        return slice(cut if positions == self.length else max(0, positions - math.ceil(positions / self.length)))

    def after_the_first(self, positions: int) -> slice:
        """The positions of a tensor that are surely after the first of the stream."""
        return slice(math.ceil(positions / self.length), None)


class Streams:
    """What the positions of a model see of each other.

    Args:
        samples: The model's example.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def is_causal(self, slot: str, place: Key, positions_dim: int) -> bool:
        """Whether a sequence slot must not look ahead.

        Args:
            slot: Its name.
            place: Where its tensor is in traces.
            positions_dim: The dimension of that tensor that holds the positions.

        Raises:
            ValueError: If it cannot be told.
        """
        streams = [s for s in self._streams if self._depends(place, s)] or self._streams
        verdicts = {self._verdict(stream, place, positions_dim) for stream in streams}
        if "causal" in verdicts:
            return True
        if "partly" in verdicts:
            raise ValueError(_question(slot, "some of its positions see later ones of the input and others do not"))
        if "ahead" in verdicts or self._pools(streams):
            return False
        why = "the model treats every position by itself" if streams else "the example has no two positions to disturb"
        raise ValueError(_question(slot, why))

    # ------------------------------------------------------------------------------------- streams

    @cached_property
    def _streams(self) -> list[_Stream]:
        return [*self._input_streams(), *self._embedding_streams()]

    def _input_streams(self) -> Iterator[_Stream]:
        """Every dimension of an input that does not hold the samples; of images also all of them in a row."""
        example = self.samples.example
        for i in example.inputs:
            dims = [d for d, size in enumerate(i.tensor.shape) if size > 1 and d != example.samples_dim_of(i.tensor)]
            if not i.can_be_disturbed:
                continue

            def other(part: slice, *dims: int, i: Input = i) -> Trace:
                return example.trace({i.index: disturbed(i.tensor, dict.fromkeys(dims, part))})

            for dim in dims:
                length = i.tensor.shape[dim]
                yield _Stream(length, {c: other(slice(c, None), dim) for c in _cuts(length)}, other(slice(1), dim))
            if i.tensor.dim() > 3 and dims:
                length = math.prod(i.tensor.shape[d] for d in dims)
                yield _Stream(length, {length - 1: other(slice(-1, None), *dims)}, other(slice(1), *dims))

    def _embedding_streams(self) -> Iterator[_Stream]:
        """What embeddings put out that depends on the samples: a decoder may make its own tokens of the input."""
        example = self.samples.example
        for place, shown in self.samples.plain.items():
            name, _, call = place
            samples = self.samples.dims(place)
            if (
                isinstance(example.model.get_submodule(name), nn.Embedding)
                and len(shown.shape) == 3
                and len(samples) == 1
            ):
                dim = 1 - samples[0]
                length = shown.shape[dim]

                def other(part: slice, name: str = name, call: int = call, dim: int = dim) -> Trace:
                    return example.trace(alter=(name, call, partial(disturbed, where={dim: part})))

                if length > 1:
                    yield _Stream(length, {c: other(slice(c, None)) for c in _cuts(length)}, other(slice(1)))

    # ------------------------------------------------------------------------------------- verdicts

    def _verdict(self, stream: _Stream, place: Key, positions_dim: int) -> Verdict:
        """What positions see of a stream, as far as a slot at ``place`` is concerned."""
        positions = self.samples.plain[place].shape[positions_dim]
        tensors = {place: [positions_dim]} | self._tensors_along(stream.length, positions)
        cuts = list(stream.last) if positions == stream.length else [stream.length - 1]

        def changed(trace: Trace, part: Callable[[int], slice]) -> bool:
            """Whether some tensor changes in a part of its positions, whichever of its dimensions they are."""
            found = ((self._changes(key, trace), dims) for key, dims in tensors.items())
            return any(lines and all(lines[d][part(len(lines[d]))].any() for d in dims) for lines, dims in found)

        ahead = [changed(stream.last[cut], partial(stream.before, cut)) for cut in cuts]
        if any(ahead):
            return "ahead" if all(ahead) else "partly"
        return "causal" if changed(stream.first, stream.after_the_first) else "alone"

    def _tensors_along(self, length: int, positions: int) -> dict[Key, list[int]]:
        """The dimensions of other tensors ``[N, L, C]`` that may be a stream's positions, or else a slot's."""
        found = {}
        for key, shown in self.samples.plain.items():
            samples = self.samples.dims(key)
            others = [d for d in range(len(shown.shape)) if d not in samples]
            if len(samples) == 1 and len(others) == 2 and all(shown.shape[d] > 1 for d in others):
                sizes = length if length in (shown.shape[d] for d in others) else positions
                found[key] = [d for d in others if shown.shape[d] == sizes]
        return {key: dims for key, dims in found.items() if dims}

    def _changes(self, key: Key, trace: Trace) -> tuple[Tensor, ...]:
        """Where a tensor differs; empty if it cannot be compared."""
        plain = self.samples.plain[key]
        comparable = key in trace and trace[key].shape == plain.shape
        return plain.changes(trace[key]) if comparable else ()

    def _depends(self, place: Key, stream: _Stream) -> bool:
        found = (self._changes(place, trace) for trace in (stream.first, *stream.last.values()))
        return any(bool(lines) and bool(lines[0].any()) for lines in found)

    def _pools(self, streams: list[_Stream]) -> bool:
        """Whether the model makes one output per sample of the first and the later positions alike."""
        pooled = False
        for key in (k for k in self.samples.plain if k[0] == "" and self.samples.dims(k)):
            for stream in streams:
                first, rest = (self._changes(key, trace) for trace in (stream.first, stream.last[min(stream.last)]))
                if not (first and rest):
                    continue
                if apart(first, rest):
                    return False
                pooled = pooled or bool(first[0].any() and rest[0].any())
        return pooled


def _cuts(length: int) -> list[int]:
    return sorted({1, length // 2, length - 1})


def _question(slot: str, why: str) -> str:
    return (
        f"cannot tell whether slot '{slot}' may look ahead: {why}. Say causal=True if the model predicts what comes "
        "next in its input, causal=False if every position may see all others"
    )
