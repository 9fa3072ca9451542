"""Simic teaches: PPO for recurrent policies with factored, masked, dependent heads, over any Gymnasium environment."""
