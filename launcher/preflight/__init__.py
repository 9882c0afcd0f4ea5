"""The look from the node that will read, before an engine starts: image, checkpoint, GPUs, directories, clock.

In: a plan. Out: commands for a script that runs on the node, in bash (`node.sh`), which `script` chooses by the plan:
for the scripts of our own jobs, and for a short job before one of srtctl's (`short_job`); and the clock that nodes
compare theirs with (`clock`).
"""
