"""Evaluation of features: weighted k-NN, linear classifiers, metrics."""
