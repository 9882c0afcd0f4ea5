"""The kinds of job that run scripts in containers: on one node of Slurm, on the runner's own host, on several nodes.

In: a benchmark and its runner file; later the plan. Out: the plan, one job, and its results where the workflow looks
for them. Open `planned` first: it has what these plans contain beside the keys of all plans. `resolve` plans a job of
one node. `kind` runs that plan, on top of `script_kind`, which all kinds of this room share: `job_script` renders the
job's script from `job_functions` (bash, job_functions.sh) and the commands of one of the `engines`; `submit` submits it
to Slurm, or through `embedded` to the embedded scheduler; `results` collects, after `checkpoint` has judged the weights
by the files that the job kept of its checkpoint.

AMD's own multi-node way, llm-d and TileRT run one container on each of several nodes, with the same parts:
multinode_resolve plans, with the multinode_placeholders that runner files may use; multinode_kind runs the plan;
multinode_job_script renders multinode_job.sh; multinode_results gathers what the nodes left.
"""
