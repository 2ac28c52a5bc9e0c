"""Runs: the training loop, checkpoints, run directories and devices. Nothing here depends on a family."""
