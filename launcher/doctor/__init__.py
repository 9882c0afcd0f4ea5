"""A live cluster beside its runner file: what is found there, what differs, and a first draft of a file."""
