"""Why the op head learns from V(s) and not from Q(s, op): the policy gradient on a bandit that can be enumerated.

    python examples/op_baseline.py

Three ops, and a second head of two choices after each op. The critic is exact. For each of three baselines of the op
head the *expected* policy gradient is computed by enumerating every action, with no sampling noise.
"""

import torch

REWARDS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])  # [op, second choice]


def expected_gradients(baseline: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected gradient of the op's logits [3] and of the second head's logits [3, 2], for one baseline of the op."""
    op_logits = torch.tensor([0.3, 0.0, -0.2], requires_grad=True)
    sub_logits = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.0, 0.3]], requires_grad=True)
    op_log_probs, sub_log_probs = op_logits.log_softmax(0), sub_logits.log_softmax(1)
    joint = (op_log_probs[:, None] + sub_log_probs).exp().detach()
    q = (sub_log_probs.exp().detach() * REWARDS).sum(1)  # Q(s, op), exact
    v = (op_log_probs.exp().detach() * q).sum()  # V(s)
    op_advantage = REWARDS - {"V": v, "Q": q[:, None], "none": torch.tensor(0.0)}[baseline]
    sub_advantage = REWARDS - q[:, None]
    surrogate = joint * (op_log_probs[:, None] * op_advantage + sub_log_probs * sub_advantage)
    return torch.autograd.grad(surrogate.sum(), (op_logits, sub_logits))


def true_gradient() -> torch.Tensor:
    """Gradient of the expected reward with respect to the op's logits, [3], by differentiating the expectation."""
    op_logits = torch.tensor([0.3, 0.0, -0.2], requires_grad=True)
    sub_probs = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.0, 0.3]]).softmax(1)
    return torch.autograd.grad((op_logits.softmax(0) * (sub_probs * REWARDS).sum(1)).sum(), op_logits)[0]


def main() -> dict[str, list[float]]:
    """Print and return the op head's expected gradient under each baseline."""
    rows = {"true gradient": true_gradient().tolist()}
    for name, baseline in (("no baseline", "none"), ("baseline V(s)", "V"), ("baseline Q(s, op)", "Q")):
        rows[name] = expected_gradients(baseline)[0].tolist()
    for name, gradient in rows.items():
        print(f"{name:18s}", "  ".join(f"{g:+.4f}" for g in gradient))
    return rows


if __name__ == "__main__":
    main()
