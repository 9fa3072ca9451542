"""PPO on the growth environment in one file of plain PyTorch, without Esper's own policy or trainer.

    python examples/growth_cleanrl_style.py

A feed-forward policy with one linear head per action head. Heads are drawn one after the other, so that each takes the
row of its mask that belongs to what was drawn before: ``slot`` the row of the op, ``blueprint`` the row of the slot.
Heads that the op does not use are drawn all the same, and the environment ignores them. That is simple but adds noise
to the ratio; Esper's policy leaves them out.
"""

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import esper  # noqa: F401 - registers the environment
from esper.tasks import get_task

NUM_ENVS, NUM_STEPS, UPDATES, EPOCHS, CLIP = (
    4,
    16,
    3,
    4,
    0.2,
)  # three updates show how it is done; learning takes many more
PARENT = {"slot": "op", "blueprint": "slot"}  # whose choice selects the row of a two-dimensional mask

torch.manual_seed(0)
task = get_task("wine")
task.horizon, task.steps_per_decision = 8, 4  # short episodes, so that this example is quick
envs = gym.make_vec("esper/Growth-v0", num_envs=NUM_ENVS, vectorization_mode="vector_entry_point", task=task)
SIZES = {"op": 0, "slot": 0} | {name: int(space.n) for name, space in envs.single_action_space.items()}


class Agent(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(64, n) for name, n in SIZES.items()})
        self.value = nn.Linear(64, 1)

    def forward(self, observation: dict, actions: dict | None = None):
        """Actions (drawn, unless given), their joint log-probability [B], the entropy [B] and the value [B]."""
        hidden = self.body(observation["features"])
        rows = torch.arange(len(hidden))
        chosen, log_prob, entropy = {}, 0.0, 0.0
        for name in SIZES:
            mask = observation[name]
            if name in PARENT:
                mask = mask[rows, chosen[PARENT[name]]]
            mask = mask | ~mask.any(1, keepdim=True)  # nothing to choose: the op does not use this head
            head = Categorical(logits=self.heads[name](hidden).masked_fill(~mask, -1e9))
            chosen[name] = head.sample() if actions is None else actions[name]
            log_prob = log_prob + head.log_prob(chosen[name])
            entropy = entropy + head.entropy()
        return chosen, log_prob, entropy, self.value(hidden)[:, 0]


def tensors(observation: dict) -> dict:
    """Features and the mask of every head."""
    masks = {name: torch.as_tensor(mask) for name, mask in observation["action_mask"].items()}
    return {"features": torch.as_tensor(observation["features"]), **masks}


agent = Agent(envs.single_observation_space["features"].shape[0])
optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
observation = tensors(envs.reset(seed=0)[0])
for update in range(UPDATES):
    seen, taken, log_probs, values, rewards, ends, finished = [], [], [], [], [], [], []
    for _ in range(NUM_STEPS):
        with torch.no_grad():
            actions, log_prob, _, value = agent(observation)
        following, reward, terminated, _, info = envs.step({name: a.numpy() for name, a in actions.items()})
        for history, entry in zip(
            (seen, taken, log_probs, values), (observation, actions, log_prob, value), strict=True
        ):
            history.append(entry)
        rewards.append(torch.as_tensor(reward, dtype=torch.float32))
        ends.append(torch.as_tensor(terminated, dtype=torch.float32))
        if terminated.any():
            finished += info["episode_metrics"]["J"][terminated].tolist()
        observation = tensors(following)
    with torch.no_grad():
        next_value, advantage, advantages = agent(observation)[3], torch.zeros(NUM_ENVS), []
    for t in reversed(range(NUM_STEPS)):  # GAE at gamma 1 and lambda 0.95; episodes end, they are never truncated
        delta = rewards[t] + (1 - ends[t]) * next_value - values[t]
        advantage = delta + 0.95 * (1 - ends[t]) * advantage
        advantages.insert(0, advantage)
        next_value = values[t]
    batch, acts = ({key: torch.cat([x[key] for x in part]) for key in part[0]} for part in (seen, taken))
    old, advantages, value = torch.cat(log_probs), torch.cat(advantages), torch.cat(values)
    target, advantages = advantages + value, (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for _ in range(EPOCHS):
        _, log_prob, entropy, value = agent(batch, acts)
        ratio = (log_prob - old).exp()
        gain = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        loss = (0.5 * (value - target).square() - gain - 0.01 * entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
    print(f"update {update}: mean J of {len(finished)} episodes {np.mean(finished):.3f}, loss {loss:.3f}")
envs.close()
