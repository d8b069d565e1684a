"""The Depth tab: a depth map in metres, measurements on it, and the picture as a point cloud."""
