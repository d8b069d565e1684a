"""The Segment tab: marks on a picture, masks of the object there, in other pictures and in videos."""
