"""What `scripts/faults slurm` tries, by subject; `tests.faults.slurm` runs it."""
