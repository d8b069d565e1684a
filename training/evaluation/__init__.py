"""How good features are: weighted k-NN, linear probes, and metrics."""
