"""Tables of action heads: an action as a small tree of dependent, masked choices.

A *head* is one choice: of one among several (categorical), of some among several (Bernoulli), or of numbers (Gaussian).
Heads are drawn in the order of their table, each conditioned on what was drawn before it. The first head is the *op*:
what to do; the others say how. This file knows nothing of growth; :mod:`esper.actions` is the table of the growth
controller, and any user may write another.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, get_args

Kind = Literal["categorical", "gaussian", "bernoulli"]
"""What a head draws: one of its choices; numbers from −1 to 1; or, of each of its choices, whether it is taken."""

Conditions = dict[str, frozenset[int]]
"""Ancestor → the choices one of which it must have taken."""


@dataclass(frozen=True)
class Head:
    """One row of a heads table.

    Args:
        name: Unique name; the key of the head's action, mask and log-probability.
        num_choices: Number of choices n_h; of a Gaussian head the numbers it draws, of a Bernoulli head the bits. ``0``
            means *one choice per slot*: the head points at the S slots.
        parent: The head whose choice may condition this head's mask (mask shape ``[B, n_parent, n_h]``).
        used_when: Ancestor heads and, for each, the choices under which this head is used; the head has no influence
            otherwise. A head whose parent is unused is unused too. Empty: used whenever its parent is.
        choices: Names of the choices, for logs and reports.
        kind: What is drawn. Masks of other heads and ``used_when`` hang on categorical heads only.

    Example:
        >>> verb = Head("verb", 3)
        >>> item = Head("item", 5, parent="verb", used_when={"verb": (1, 2)})
        >>> force = Head("force", 2, kind="gaussian", parent="verb", used_when={"verb": (2,)})
        >>> HeadTable([verb, item, force]).names
        ('verb', 'item', 'force')
    """

    name: str
    num_choices: int
    parent: str | None = None
    used_when: Mapping[str, Collection[int]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    kind: Kind = "categorical"

    @property
    def is_categorical(self) -> bool:
        """True for a head whose action is one number, a choice; else it is ``num_choices`` numbers."""
        return self.kind == "categorical"

    @property
    def points_at_slots(self) -> bool:
        """True for a head whose choices are the slots."""
        return self.num_choices == 0


class HeadTable(Sequence[Head]):
    """An ordered, checked table of heads.

    The first head is *the op* of the table, whatever its name is. Where it is categorical the critic Q(s, op) is
    conditioned on its choice, else there is V(s) alone; every head after it is conditioned on what it drew.
    ``sampled_op``, ``op_values``, ``op_share`` and the advantage A_op are about this head; A_sub is the advantage of
    the heads after it.

    Raises:
        ValueError: For an empty table, a repeated name, a parent or a ``used_when`` head that does not stand earlier in
            the table or is not categorical, or a choice outside its head.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = tuple(heads)
        if not self._heads:
            raise ValueError("expected at least one head, got an empty table; the first head is the op")
        if self._heads[0].parent is not None or self._heads[0].points_at_slots:
            raise ValueError(f"the first head, '{self._heads[0].name}', is the op: it takes no parent and no slots")
        seen: dict[str, Head] = {}
        for head in self._heads:
            self._check(head, seen)
            seen[head.name] = head
        self._by_name = seen
        self.conditions: dict[str, Conditions] = {}
        """All that must hold for each head to be used, its ancestors' conditions included."""
        for head in self._heads:
            self.conditions[head.name] = self._conditions(head)

    @staticmethod
    def _check(head: Head, seen: Mapping[str, Head]) -> None:
        if head.name in seen:
            raise ValueError(f"two heads are named '{head.name}'; names must be unique")
        if head.kind not in get_args(Kind):
            raise ValueError(f"head '{head.name}': expected a kind of {get_args(Kind)}, got '{head.kind}'")
        if head.num_choices < 1 and not head.is_categorical:
            raise ValueError(f"head '{head.name}': a {head.kind} head draws 1 number or more, got {head.num_choices}")
        if head.num_choices < 0:
            raise ValueError(f"head '{head.name}': num_choices must be 0 (the slots) or more, got {head.num_choices}")
        if head.choices and len(head.choices) != head.num_choices:
            raise ValueError(f"head '{head.name}' has {head.num_choices} choices but {len(head.choices)} choice names")
        if head.parent is not None and head.parent not in seen:
            raise ValueError(f"head '{head.name}': its parent '{head.parent}' must stand before it in the table")
        if head.parent is not None and not seen[head.parent].is_categorical:
            raise ValueError(
                f"head '{head.name}': its parent '{head.parent}' is {seen[head.parent].kind}; only a categorical head "
                "can be a parent. Leave out parent: a head sees all that was drawn before it anyway"
            )
        for ancestor, choices in head.used_when.items():
            if ancestor not in seen:
                raise ValueError(f"head '{head.name}': used_when names '{ancestor}', which does not stand before it")
            if not seen[ancestor].is_categorical:
                raise ValueError(f"head '{head.name}': used_when names '{ancestor}', which is not categorical")
            if seen[ancestor].points_at_slots:
                raise ValueError(f"head '{head.name}': used_when names '{ancestor}', whose choices are slots")
            outside = [c for c in choices if not 0 <= c < seen[ancestor].num_choices]
            if outside:
                raise ValueError(f"head '{head.name}': used_when names choices {outside} outside head '{ancestor}'")

    def _conditions(self, head: Head) -> Conditions:
        own = {ancestor: frozenset(int(c) for c in choices) for ancestor, choices in head.used_when.items()}
        for ancestor in (*own, head.parent) if head.parent else tuple(own):
            for name, choices in self.conditions[ancestor].items():
                own[name] = own.get(name, choices) & choices
        return own

    # ------------------------------------------------------------------ when a head is used, and what is allowed then

    def is_used(self, name: str, choices: Mapping[str, Any]) -> Any:
        """Whether the head called ``name`` is used, given the choices of its ancestors.

        Args:
            name: The head.
            choices: Head → its choice: integers, or integer arrays or tensors of one shape ``[...]``; ``[..., n]`` for
                heads that are not categorical.

        Returns:
            A bool, or bools ``[...]``.

        Example:
            >>> table = HeadTable([Head("verb", 3), Head("item", 5, parent="verb", used_when={"verb": (1, 2)})])
            >>> table.is_used("item", {"verb": 0}), table.is_used("item", {"verb": 2})
            (False, True)
        """
        first = choices[self.op.name]
        first = first if self.op.is_categorical else first[..., 0]
        held = (_is_one_of(choices[ancestor], taken) for ancestor, taken in self.conditions[name].items())
        return reduce(operator.and_, held, first == first)  # true, in the form that the choices have

    def users(self, name: str) -> Conditions:
        """The heads whose use depends on the choice of ``name``, and the choices under which they are used."""
        return {user: own[name] for user, own in self.conditions.items() if name in own}

    def together(self, one: str, other: str) -> bool:
        """Whether two heads are ever used together."""
        first, second = self.conditions[one], self.conditions[other]
        return all(first.values()) and all(choices & first.get(name, choices) for name, choices in second.items())

    def mask_shapes(self, name: str, num_slots: int) -> tuple[tuple[int, ...], ...]:
        """Shapes that the mask of a head may have for one row: ``[n]``, and with a parent ``[n_parent, n]``.

        Of a Bernoulli head ``[n, 2]`` (whether each bit may be 0, and whether 1), and with a parent
        ``[n_parent, n, 2]``; a Gaussian head has none.
        """
        sizes, head = self.sizes(num_slots), self.named(name)
        if head.kind == "gaussian":
            return ()
        parent, plain = head.parent, (sizes[name],) if head.is_categorical else (sizes[name], 2)
        return (plain,) if parent is None else (plain, (sizes[parent], *plain))

    def allowed(self, name: str, mask: Any, choices: Mapping[str, Any]) -> Any:
        """What the head called ``name`` may choose, given what its parent chose.

        Args:
            name: The head.
            mask: Its mask ``[..., n]`` or ``[..., n_parent, n]``; of a Bernoulli head ``[..., n, 2]`` or
                ``[..., n_parent, n, 2]``.
            choices: Head → its choice: an integer for a mask of one row, or a tensor ``[...]``.

        Returns:
            The mask ``[..., n]``, or ``[..., n, 2]``.
        """
        head = self.named(name)
        if head.parent is None:
            return mask
        taken, own = choices[head.parent], 1 if head.is_categorical else 2
        rank = getattr(taken, "ndim", 0)
        if mask.ndim == rank + own:
            return mask
        if not rank:
            return mask[taken]
        return mask.take_along_dim(taken[(..., *[None] * (own + 1))], rank).squeeze(rank)

    # ------------------------------------------------------------------ the rows of the table

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the heads, in order."""
        return tuple(self._by_name)

    @property
    def op(self) -> Head:
        """The first head: what to do."""
        return self._heads[0]

    @property
    def num_ops(self) -> int:
        """O, for the critic Q(s, op): the choices of the first head; 0 where it is not categorical."""
        return self.op.num_choices if self.op.is_categorical else 0

    def named(self, name: str) -> Head:
        """The head called ``name``; raises ``KeyError`` when there is none."""
        return self._by_name[name]

    def sizes(self, num_slots: int) -> dict[str, int]:
        """Number of choices of every head when there are ``num_slots`` slots."""
        return {h.name: num_slots if h.points_at_slots else h.num_choices for h in self._heads}

    def resize(self, name: str, choices: tuple[str, ...]) -> None:
        """Give a head other choices; no other head's use may hang on them.

        Raises:
            ValueError: If one does.
        """
        if any(name in conditions for conditions in self.conditions.values()):
            raise ValueError(f"the use of other heads hangs on the choices of head '{name}', which must stay")
        changed = replace(self.named(name), num_choices=len(choices), choices=choices)
        self._heads = tuple(changed if head.name == name else head for head in self._heads)
        self._by_name[name] = changed

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._heads[index]

    def __len__(self) -> int:
        return len(self._heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadTable) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.names)

    def to_json(self) -> list[dict]:
        """The table as plain JSON data; :meth:`from_json` reads it back."""
        return [
            {
                "name": h.name,
                "num_choices": h.num_choices,
                "parent": h.parent,
                "used_when": {k: sorted(v) for k, v in h.used_when.items()},
                "choices": list(h.choices),
                "kind": h.kind,
            }
            for h in self._heads
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping]) -> HeadTable:
        """The table that :meth:`to_json` wrote."""
        return cls([Head(**{**row, "choices": tuple(row["choices"])}) for row in rows])


def _is_one_of(choice: Any, taken: Collection[int]) -> Any:
    return reduce(operator.or_, (choice == one for one in sorted(taken)), choice != choice)
