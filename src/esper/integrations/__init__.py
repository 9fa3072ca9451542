"""Growth in other people's training loops: Lightning and transformers, each behind its extra."""
