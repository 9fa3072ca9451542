"""Stacked values: K tensors of one shape, one per host, that PyTorch code may take for a single one.

A module of one host is run unchanged: its parameters and its input are :class:`Stacked`, and every PyTorch function it
calls on them is answered by a *rule*, which does the same for all hosts at once. A function without a rule is an error,
never a guess.

The axis of the hosts is always the first one of the tensor inside. In memory it may lie elsewhere: a convolution folds
the hosts into the channels, ``[N, K·C, H, W]``, and its result is a transposed view of that, which the next convolution
folds again for nothing. So no value needs a tag for its layout; strides are the tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
"""By the name of a function (``torch.x``, ``torch.nn.functional.x`` and ``Tensor.x`` are one): what it does to stacked
values. A rule is called with the function itself, then with the function's own arguments."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: this is the rule of the functions of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for '{name}'"
            RULES[name] = function
        return function

    return register


class NoRuleError(ValueError):
    """A module calls something that cannot be stacked (yet)."""


class Stacked:
    """K tensors of the same shape in one tensor ``[K, ...]``; looks like one of them.

    Args:
        data: The tensor inside, hosts first.

    Example:
        >>> hosts = Stacked(torch.ones(5, 2, 3))
        >>> hosts.shape, torch.relu(hosts).data.shape
        (torch.Size([2, 3]), torch.Size([5, 2, 3]))
    """

    __slots__ = ("data",)

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Stacked({len(self.data)} × {tuple(self.shape)})"

    # What a host would see ------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """Shape of one host's tensor."""
        return self.data.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of axes of one host's tensor."""
        return self.data.dim() - 1

    @property
    def dtype(self) -> torch.dtype:
        """Data type."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Device."""
        return self.data.device

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.data.is_cuda

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are wanted."""
        return self.data.requires_grad

    def dim(self) -> int:
        """Number of axes of one host's tensor."""
        return self.data.dim() - 1

    def size(self, dim: int | None = None) -> Any:
        """Shape, or one length, of one host's tensor."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Number of elements of one host's tensor."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Whether the data type is a floating one."""
        return self.data.is_floating_point()

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Stacked]:
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        raise NoRuleError("a branch on the values of a tensor cannot be taken for many hosts at once")

    # Functions ------------------------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return apply(func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        function = getattr(Tensor, name)
        if not callable(function):
            raise NoRuleError(f"the attribute '{name}' of a tensor cannot be stacked")
        return lambda *args, **kwargs: apply(function, self, *args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return apply(Tensor.__getitem__, self, index)

    def __neg__(self) -> Any:
        return apply(torch.neg, self)

    def __add__(self, other: Any) -> Any:
        return apply(torch.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return apply(torch.add, self, other)

    def __iadd__(self, other: Any) -> Any:
        return apply(Tensor.add_, self, other)

    def __sub__(self, other: Any) -> Any:
        return apply(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return apply(torch.rsub, self, other)

    def __isub__(self, other: Any) -> Any:
        return apply(Tensor.sub_, self, other)

    def __mul__(self, other: Any) -> Any:
        return apply(torch.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return apply(torch.mul, self, other)

    def __imul__(self, other: Any) -> Any:
        return apply(Tensor.mul_, self, other)

    def __truediv__(self, other: Any) -> Any:
        return apply(torch.div, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return apply(torch.mul, apply(torch.reciprocal, self), other)

    def __pow__(self, exponent: Any) -> Any:
        return apply(torch.pow, self, exponent)

    def __matmul__(self, other: Any) -> Any:
        return apply(torch.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return apply(torch.matmul, other, self)

    def __eq__(self, other: object) -> Any:
        return apply(torch.eq, self, other)

    def __ne__(self, other: object) -> Any:
        return apply(torch.ne, self, other)

    def __lt__(self, other: Any) -> Any:
        return apply(torch.lt, self, other)

    def __le__(self, other: Any) -> Any:
        return apply(torch.le, self, other)

    def __gt__(self, other: Any) -> Any:
        return apply(torch.gt, self, other)

    def __ge__(self, other: Any) -> Any:
        return apply(torch.ge, self, other)

    __hash__ = object.__hash__


def stacked(data: Tensor) -> Tensor:
    """``data [K, ...]`` as a stacked value, for code that is written for the tensor of one host."""
    return cast(Tensor, Stacked(data))


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` on arguments some of which are stacked, by its rule.

    Raises:
        NoRuleError: If it has none.
    """
    name = function.__name__
    found = RULES.get(name)
    if found is None:
        raise NoRuleError(f"there is no rule for '{name}' on stacked hosts; train them with engine='loop'")
    return found(function, *args, **kwargs)
