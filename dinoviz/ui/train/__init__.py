"""The Train tab: set up a run, watch it learn, use and publish what comes out."""
