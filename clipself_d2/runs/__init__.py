"""What happens to a run from outside: its folder, its checkpoints, signals."""
