"""The kinds of job that run scripts in containers: on one node of Slurm, on the runner's own host, on several nodes.

In: a benchmark and its runner file; later the plan. Out: the plan, one job, and its results where the workflow looks
for them. `planned` is what the plans have beside all others; open it first. `kind` carries a plan of one node out, with
what `script_kind` has for all kinds here: `job_script` renders the job's script, of `job_functions` (their text is
job_functions.sh), the commands of one of the `engines`, and quoted words; `submit` submits it, to Slurm or by
`embedded` to the embedded scheduler; `results` collects, once `checkpoint` has judged what the job kept of a checkpoint
on its node.

AMD's own multi-node way, llm-d and TileRT run one container on each of several nodes, and have the same parts by the
same names: multinode_resolve decides, with the multinode_words that runner files may use; multinode_kind carries out;
multinode_job_script renders multinode_job.sh; multinode_results brings together what the nodes left.
"""
