"""Training depth probes: RGB-D folders, pseudo labels of a teacher, cached features and losses."""
