"""Checkpoints: is one whole and the one that was declared, and how it comes to where jobs read it.

In: a path or `hf:ORGANISATION/NAME@COMMIT`, the precision that a benchmark declares, perhaps nodes. Out: a report of
what is there; a directory that is whole and has its manifest, or nothing; for each node what became of its copy. Open
checkpoint.py first for looking (serving.py says what follows), stage.py for copying, nodes.py for copies on nodes.

copy.py has one importer: it moves bytes, and stage.py decides.
"""
