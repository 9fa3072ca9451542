"""Growth as a reinforcement-learning environment."""
