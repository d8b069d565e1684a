"""What a new run is checked for before anything of it is made."""

from __future__ import annotations


def check(kind: str, config) -> None:
    """Raise DinovizError for what a run would refuse at its start, so that no dead run holds a name."""
    if kind == "pretrain":
        from training.pretrain import check
    elif kind == "finetune":
        from training.finetune import check
    else:
        from training.probe import check
    check(config)
