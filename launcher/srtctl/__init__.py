"""srt-slurm as the launcher uses it: what a recipe says, which plan follows from it, and the job that `srtctl` submits.

In: a recipe file and its selector, a benchmark, a runner file's lane. Out: a `Plan` (resolve), a pinned work tree
(checkout), its srtslurm.yaml and one Slurm job (submit). recipe, facts, locate, edit, planned and resolve decide
and touch nothing; the others have effects. Open recipe.py first, then kind.py.

sbatch_wrapper stays apart because it is a program of its own, which srtctl starts; mirror because `check` asks it too;
short_job because it is about a job of its own, before the one that is submitted.
"""
