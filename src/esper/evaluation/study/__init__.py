"""A study: all arms on all tasks, and what they say about the claims."""
