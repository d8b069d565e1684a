"""Configurations of all kinds of runs: dataclasses, presets and command-line options."""
