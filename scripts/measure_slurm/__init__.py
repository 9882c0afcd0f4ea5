"""Measurements of how Slurm is asked, on a real cluster: `python -m scripts.measure_slurm`."""
