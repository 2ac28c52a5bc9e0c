"""One question each, of several runs or models."""
