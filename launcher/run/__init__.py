"""Runs: from a plan to an outcome, with a record on disk that any other process can go on from."""
