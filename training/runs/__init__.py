"""A run is a folder: its files, checkpoints, life cycle and limits."""

from training.runs.run import Run, list_runs, root

__all__ = ["Run", "list_runs", "root"]
