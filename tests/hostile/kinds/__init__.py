"""Kinds of hostile files, one a module; each has `write(corpus)`."""
