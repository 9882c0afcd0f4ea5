"""The kinds of job that run one container on each of several nodes: AMD's own multi-node way, llm-d, TileRT.

In: a benchmark of several nodes and its runner file; later the plan. Out: the plan, one job of Slurm, and its results
where the workflow looks for them. `planned` is what such a plan has beside all others; open it first. `resolve` decides
it, with the `words` that runner files may use; `kind` carries it out: `job_script` renders the job's script of
`job.sh`, and `results` brings together what the job's nodes left.
"""
