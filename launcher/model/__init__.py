"""Checkpoints: is one whole and the one that was declared, and how it comes to where jobs read it.

In: a path or `hf:ORGANISATION/NAME@COMMIT`, the precision that a benchmark declares, perhaps nodes. Out: a report of
what is there; a directory that is whole and has its manifest, or nothing; for each node what became of its copy. Open
checkpoint.py first for looking, stage.py for copying, node_job.py for copies on nodes.

Files with one importer, each for one reason: safetensors is a file format; quantisation is what producers declare;
striping is one file system's; copy moves bytes and stage decides; hub needs the extra of that name; gc is all that
removes.
"""
