"""Training images: folders, zip files and lists, the built-in demo, labels and transforms."""
