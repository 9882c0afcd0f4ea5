"""A live cluster, as it describes itself: for drafting a first runner file, and for comparing a file with it."""
