"""The commands of `python -m dinoviz`, one a file; each has `add(commands, looking)`, which adds its parser."""
