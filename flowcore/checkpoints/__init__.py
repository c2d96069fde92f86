"""Model files: our format, public checkpoints, shipped weights."""
