"""The plan: a value that names everything that a run will do."""
