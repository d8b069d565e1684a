"""The settings of each kind of run: dataclasses, presets, and the command-line options made from them."""
