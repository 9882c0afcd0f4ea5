"""A real Slurm cluster of many nodes on one machine, in one directory. `scripts/cluster` is the way in.

Standard library only: it runs before the project's environment exists.
"""
