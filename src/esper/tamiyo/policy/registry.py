"""Policies by name: what ``policy="heuristic"`` means everywhere in Esper."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from esper.actions import Decision
from esper.extensions import Registry, look_up
from esper.files import read_json
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import POLICY_FILE, LSTMPolicyBundle
from esper.tamiyo.policy.protocol import Policy, RulePolicy, RunView
from esper.tamiyo.policy.rules import AuditionPolicy, FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy

SHIPPED = Path(__file__).with_name("shipped")
"""Directory of the trained Tamiyo that comes with Esper."""


def _shipped() -> Policy:
    return load_policy(SHIPPED)


POLICIES: Registry[Callable[[], Policy]] = Registry("policies", "policy")
"""Name → a new policy; ``tamiyo`` is the trained one that comes with Esper. Register your own:
``POLICIES["mine"] = MyPolicy``."""

POLICIES.update(
    wait=WaitPolicy,
    random=RandomPolicy,
    fixed=FixedSchedulePolicy,
    heuristic=HeuristicPolicy,
    audition=AuditionPolicy,
    tamiyo=_shipped,
)

Rule = Callable[[RunView], Decision]
"""A rule as a plain function: what is seen of one run in, one decision out."""


def default_policy(horizon: int | None) -> str:
    """Name of the controller that decides where none is named: Tamiyo, or the heuristic in a run of unknown length.

    Tamiyo plans with the length of the run; the heuristic needs none.

    Args:
        horizon: Decisions in the run, if known.
    """
    return "heuristic" if horizon is None else "tamiyo"


class FunctionPolicy(RulePolicy):
    """A plain function as a policy."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def decide(self, run: RunView) -> Decision:
        """What the function says."""
        decision = self.rule(run)
        if not isinstance(decision, Decision):
            raise TypeError(f"a rule must return an esper.actions.Decision, got {type(decision).__name__}")
        return decision


def load_policy(directory: str | Path, *, deterministic: bool = True) -> LearnedPolicy:
    """A trained Tamiyo.

    Args:
        directory: Where ``esper train`` has saved it (the run's ``checkpoint``).
        deterministic: Deterministic inference instead of drawing; see
            :class:`~esper.tamiyo.policy.learned.LearnedPolicy`.

    Raises:
        ValueError: For a missing, truncated or foreign file.
    """
    return LearnedPolicy(LSTMPolicyBundle.load(Path(directory)), deterministic=deterministic)


def directory_of(policy: str | Path) -> Path | None:
    """Where the policy of this name, or in this directory, lies; ``None`` for one that no training has written.

    Raises:
        ValueError: For a name that is neither known nor a directory; the message gives the nearest names.
    """
    if str(policy) in POLICIES:
        return SHIPPED if POLICIES[str(policy)] is _shipped else None
    if Path(policy).is_dir():
        return Path(policy)
    raise POLICIES.unknown(
        str(policy),
        "give the directory of a trained policy (there is none of that name), or one of your own as module:name",
    )


def is_reference(policy: object) -> bool:
    """Whether this says where in Python a policy is found, as ``module:name``."""
    return isinstance(policy, str) and ":" in policy and policy not in POLICIES and not Path(policy).is_dir()


def fingerprint(policy: str | Path) -> str | None:
    """SHA-256 of a trained policy's file, in hexadecimal; ``None`` for a policy that no training has written.

    Raises:
        ValueError: As :func:`directory_of` says.
    """
    directory = None if is_reference(policy) else directory_of(policy)
    return None if directory is None else hashlib.sha256((directory / POLICY_FILE).read_bytes()).hexdigest()


def trained_on(policy: str | Path) -> tuple[str, ...]:
    """Tasks that a policy has learned on, as its model card (``card.json``) says; empty where it has none.

    Raises:
        ValueError: As :func:`directory_of` says, and for a card that names no tasks.
    """
    directory = None if is_reference(policy) else directory_of(policy)
    card = None if directory is None else directory / "card.json"
    if card is None or not card.is_file():
        return ()
    described = read_json(card)
    tasks = described.get("tasks") if isinstance(described, dict) else None
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"'{card}': field 'tasks': expected a list of names, got {tasks!r}")
    return tuple(tasks)


def make_policy(policy: str | Path | Policy | Rule) -> Policy:
    """The policy that a user asked for.

    Args:
        policy: A name in :data:`POLICIES`, the directory of a trained policy, a policy object, a function from
            :class:`~esper.tamiyo.policy.protocol.RunView` to :class:`~esper.actions.Decision`, a class of policies, or
            where such a one is found, as ``module:name``.

    Raises:
        ValueError: For a name that is neither known nor a directory; the message gives the nearest names.
    """
    if is_reference(policy):
        policy = look_up(str(policy))
    if isinstance(policy, type):
        policy = policy()
    if isinstance(policy, (str, Path)):
        directory = directory_of(policy)
        return POLICIES[str(policy)]() if directory is None else load_policy(directory)
    if hasattr(policy, "act") and hasattr(policy, "reset"):
        return policy
    if callable(policy):
        return FunctionPolicy(policy)
    raise TypeError(
        "expected a policy name, a directory, module:name, an object with reset() and act(), or a function, "
        f"got {type(policy).__name__}"
    )
