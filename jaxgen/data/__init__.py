"""Data sets by name, and batches as a pure function of the step."""
