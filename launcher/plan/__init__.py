"""The plan: a value that names everything that a run will do, and what every kind of job plans alike.

In come a benchmark, a runner file's rules and a context (workspace, run id, date); out comes a `Plan`, which is printed
as JSON, kept in the run's record and carried out. Open plan.py first: its fields are the keys of the JSON. derive.py
decides what does not depend on the kind of job: images, checkpoint, workspace, partition; expected.py what results are
compared with; preflight.py what a node is asked before an engine starts (image, checkpoint, GPUs, directories, clock,
locks), as commands of bash (preflight.sh) for a job's script. Nothing here has an effect.
"""
