"""srt-slurm as the launcher uses it: what a recipe says, which plan follows from it, and the job that `srtctl` submits.

In: a recipe file and its selector, a benchmark, a runner file's lane. Out: a `Plan` (resolve), a pinned work tree
(checkout), its srtslurm.yaml (config), one Slurm job (submit). recipe, facts, locate, edit, acceptance and resolve
decide and touch nothing; the others have effects. Open recipe.py first, then submit.py.

acceptance has one importer and stays apart from edit: it is InferenceX's switch, edit the way of changing any recipe.
exit_marker stays apart because it knows one line of srt-slurm's job script and nothing else; sbatch_wrapper because it
is a program of its own, which srtctl starts.
"""
