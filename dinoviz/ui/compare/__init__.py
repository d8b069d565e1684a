"""The Compare tab: two models, runs or snapshots on the same picture."""
