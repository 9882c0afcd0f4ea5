"""Stand-ins for srtctl, srt-slurm and enroot that keep their contracts: a whole run on a laptop."""
