"""Lightning modules, losses, rewards, strategies and checkpoints."""
