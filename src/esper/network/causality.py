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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from esper.network.example import Input, Key, Samples, Trace, apart, disturbed
from esper.network.host_call import Padding

Verdict = Literal["causal", "partly", "ahead", "alone"]


@dataclass(eq=False)
class _Stream:
    """Other values in a part of one stream, and what comes of it.

    Args:
        length: Number of positions.
        other: Runs the example with other values in a part of the positions, and with other inputs besides.
        cuts: The first positions of the parts at the end that are looked at.
        besides: The other inputs.
    """

    length: int
    other: Callable[[slice, Mapping[int, Tensor]], Trace]
    cuts: Iterable[int]
    besides: Mapping[int, Tensor] = field(default_factory=dict)

    @cached_property
    def last(self) -> dict[int, Trace]:
        """By a position: the trace with all positions from there on disturbed."""
        return {cut: self.other(slice(cut - self.length, None), self.besides) for cut in sorted(set(self.cuts))}

    @cached_property
    def first(self) -> Trace:
        """The trace with position 0 disturbed."""
        return self.other(slice(1), self.besides)

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
        self._plain = samples.plain
        self._masks = [i for i in samples.example.inputs if "mask" in i.name and i.tensor.dim() == 2]

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
        """All streams, with no padding in the example: what is masked could not be seen by anybody."""
        streams = [*self._input_streams(), *self._embedding_streams()]
        kept = {}
        for mask in self._masks:
            values = (self._value_of_padding(mask, [s], self._tensors_along(s.length, s.length)) for s in streams)
            padding = next((value for value in values if value is not None), None)
            if padding is not None:
                kept[mask.index] = torch.full_like(mask.tensor, not padding)
        if kept:
            self._plain = self.samples.example.trace(kept)
        for stream in streams:
            stream.besides = kept
        return streams

    def _input_streams(self) -> Iterator[_Stream]:
        """Every dimension of an input that does not hold the samples; of images also all of them in a row."""
        for i in self.samples.example.inputs:
            samples = self.samples.example.samples_dim_of(i.tensor)
            dims = [d for d, size in enumerate(i.tensor.shape) if size > 1 and d != samples]
            if not i.can_be_disturbed or not dims:
                continue
            for dim in dims:
                length = i.tensor.shape[dim]
                yield _Stream(length, partial(self._with_other_input, i, (dim,)), _cuts(length))
            if i.tensor.dim() > 3:
                length = math.prod(i.tensor.shape[d] for d in dims)
                yield _Stream(length, partial(self._with_other_input, i, dims), [length - 1])

    def _with_other_input(self, i: Input, dims: Sequence[int], part: slice, besides: Mapping[int, Tensor]) -> Trace:
        return self.samples.example.trace({**besides, i.index: disturbed(i.tensor, dict.fromkeys(dims, part))})

    def _embedding_streams(self) -> Iterator[_Stream]:
        """What embeddings put out that depends on the samples: a decoder may make its own tokens of the input."""
        for place, shown in self.samples.plain.items():
            module, samples = self.samples.example.model.get_submodule(place[0]), self.samples.dims(place)
            if isinstance(module, nn.Embedding) and len(shown.shape) == 3 and len(samples) == 1:
                dim = 1 - samples[0]
                length = shown.shape[dim]
                if length > 1:
                    yield _Stream(length, partial(self._with_other_embedding, place, dim), _cuts(length))

    def _with_other_embedding(self, place: Key, dim: int, part: slice, besides: Mapping[int, Tensor]) -> Trace:
        name, _, call = place
        return self.samples.example.trace(besides, alter=(name, call, partial(disturbed, where={dim: part})))

    # ------------------------------------------------------------------------------------- verdicts

    def _verdict(self, stream: _Stream, place: Key, positions_dim: int) -> Verdict:
        """What positions see of a stream, as far as a slot at ``place`` is concerned."""
        positions = self.samples.plain[place].shape[positions_dim]
        tensors = {place: [positions_dim]} | self._tensors_along(stream.length, positions)
        cuts = list(stream.last) if positions == stream.length else [stream.length - 1]

        ahead = [self._any_changes(tensors, stream.last[cut], partial(stream.before, cut)) for cut in cuts]
        if any(ahead):
            return "ahead" if all(ahead) else "partly"
        return "causal" if self._any_changes(tensors, stream.first, stream.after_the_first) else "alone"

    def _any_changes(
        self,
        tensors: Mapping[Key, Sequence[int]],
        trace: Trace,
        part: Callable[[int], slice],
        plain: Trace | None = None,
    ) -> bool:
        """Whether some tensor changes in a part of its positions, whichever of the given dimensions they are.

        Args:
            tensors: The dimensions of each tensor that may hold positions.
            trace: The disturbed forward pass.
            part: From a number of positions to those that are looked at.
            plain: What it is compared to; the example by default.
        """
        found = ((self._changes(key, trace, plain), dims) for key, dims in tensors.items())
        return any(lines and all(lines[d][part(len(lines[d]))].any() for d in dims) for lines, dims in found)

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

    def _changes(self, key: Key, trace: Trace, plain: Trace | None = None) -> tuple[Tensor, ...]:
        """Where a tensor differs; empty if it cannot be compared."""
        before = (self._plain if plain is None else plain).get(key)
        comparable = before is not None and key in trace and trace[key].shape == before.shape
        return before.changes(trace[key]) if before is not None and comparable else ()

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

    # ------------------------------------------------------------------------------------- padding

    def padding(self, place: Key, positions_dim: int) -> Padding | None:
        """The mask that says which positions of a slot are padding, if the model takes one."""
        length = self.samples.plain[place].shape[positions_dim]
        streams = [s for s in self._streams if s.length == length and self._depends(place, s)]
        tensors = {place: [positions_dim]} | self._tensors_along(length, length)
        for mask in self._masks if streams else []:
            value = self._value_of_padding(mask, streams, tensors)
            if value is not None:
                return Padding(mask.name, value)
        return None

    def _value_of_padding(
        self, mask: Input, streams: Sequence[_Stream], tensors: Mapping[Key, Sequence[int]]
    ) -> bool | None:
        """What a mask holds at padding; ``None`` if it is another kind of mask, or that of other positions.

        Where it holds that at the first position alone, nothing else changes with what stands there; where it holds it
        nowhere, something does.
        """
        shape, samples = tuple(mask.tensor.shape), self.samples.example.samples
        dim = next((d for d in (1, 0) if shape[d] == streams[0].length and shape[1 - d] == samples), None)
        if dim is None or not mask.tensor.isfinite().all():
            return None
        for value in (False, True):
            nowhere = torch.full_like(mask.tensor, not value)
            at_first = nowhere.clone()
            at_first.select(dim, 0).fill_(value)
            seen = [self._first_is_seen(streams, tensors, mask, changed) for changed in (nowhere, at_first)]
            if seen == [True, False]:
                return value
        return None

    def _first_is_seen(
        self, streams: Sequence[_Stream], tensors: Mapping[Key, Sequence[int]], mask: Input, changed: Tensor
    ) -> bool:
        """Whether, with another mask, later positions of some tensor change with the first of a stream."""
        plain = self.samples.example.trace({mask.index: changed})
        return any(
            self._any_changes(tensors, s.other(slice(1), {mask.index: changed}), s.after_the_first, plain)
            for s in streams
        )


def _cuts(length: int) -> list[int]:
    return [1, length // 2, length - 1]


def _question(slot: str, why: str) -> str:
    return (
        f"cannot tell whether slot '{slot}' may look ahead: {why}. Say causal=True if the model predicts what comes "
        "next in its input, causal=False if every position may see all others"
    )
