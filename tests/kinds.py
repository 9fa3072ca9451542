"""The kinds of networks that whatever hangs on memory is tested with, as options by name."""

from __future__ import annotations

from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"memory": "gru"},
    "none": {"memory": "none"},
    "lstm_of_2_and_a_critic_with_its_own": {"memory_layers": 2, "critic_memory": "separate"},
    "gru_of_2_and_a_critic_with_its_own": {"memory": "gru", "memory_layers": 2, "critic_memory": "separate"},
    "lstm_and_a_critic_without": {"critic_memory": "none"},
    "gru_of_2_and_a_critic_without": {"memory": "gru", "memory_layers": 2, "critic_memory": "none"},
    "more_layers": {
        "encoder_layers": (20, 24),
        "policy_layers": (28,),
        "critic_layers": (12, 10),
        "activation": "tanh",
    },
}
