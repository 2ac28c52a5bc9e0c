"""Runs: the training loop, checkpoints, run directories and devices. It knows no family."""
