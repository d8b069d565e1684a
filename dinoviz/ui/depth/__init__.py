"""The Depth tab: a map in metres, measurements on it, and the picture as points in space."""
