"""All benchmarks, one after the other: `make bench`; or some: `python -m tests.benchmarks encode training_speed`."""

import importlib
import sys

# From the shortest of each half to the longest; the last three train, for an hour in all.
ALL = (
    *("encode", "memory", "pca_stability", "segmentation", "video"),
    *("training_speed", "pretraining", "adaptation", "finetune"),
)

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(ALL)
    if unknown:
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; known are {', '.join(ALL)}.")
    for name in sys.argv[1:] or ALL:
        importlib.import_module(f"tests.benchmarks.{name}").main()
        print()
