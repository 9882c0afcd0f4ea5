"""Checkpoints: whether one is whole and the declared one, and how it is copied to where jobs read it.

In: a path or `hf:ORGANISATION/NAME@COMMIT`, the precision that a benchmark declares, perhaps nodes. Out: a report about
a checkpoint; a whole directory with its manifest, or nothing; for each node the result of its copy. Open checkpoint.py
first for examining (serving.py decides by its report), stage.py for copying, nodes.py for copies on nodes.

copy.py has one importer: it moves bytes, and stage.py decides.
"""
