"""The commands of ``esper``, one module each: a typed config dataclass and what it does."""
