"""Checks of a new run before its folder is created."""

from __future__ import annotations


def check(kind: str, config) -> None:
    """Raise DinovizError for data and settings that a run would refuse, so that no failed run occupies the name."""
    if kind == "pretrain":
        from training.pretrain import check
    elif kind == "finetune":
        from training.finetune import check
    else:
        from training.probe import check
    check(config)
