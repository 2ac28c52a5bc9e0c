"""Experiment scripts: one a family, its systems as subcommands; `studies` answer one question each."""
