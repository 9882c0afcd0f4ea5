"""The kinds of job that run a benchmark's script in one container: on a node of Slurm, or on the runner's own host.

In: a benchmark of one node and its runner file; later the plan. Out: the plan, one job, and its results where the
workflow looks for them. `planned` is what such a plan has beside all others; open it first. `kind` carries such a plan
out: `job_script` renders the job's script, of `job_functions` (in bash), the commands of one of the `engines`, and
words that `shell_words` quotes; `submit` submits it, to Slurm or by `embedded` to the embedded scheduler; `results`
collects, once `checkpoint` has judged what the job kept of a checkpoint on its node.
"""
