"""Jobs: whose they are, how they stand, how they are ended; by Slurm's tools, or embedded where there is no Slurm."""
