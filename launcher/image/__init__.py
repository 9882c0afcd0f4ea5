"""Container images as squash files: what a reference means, whether a file is whole, and having one in place.

A `PlannedImage` (part of the plan) and an `ImportPolicy` come in; an `ImageRecord` goes out, which names the squash
file, or an ImageError is raised. Open store.py first (`ensure_image`), which has the steps in their order. inventory.py
and usage.py are for `launcher image list`, `verify` and `gc`, probe.py for `launcher doctor locks`. requests.py has one
importer: it asks as curl does, and registry.py knows what images are. Nobody imports die_with_parent.py, which is run
by its path; the tables of reference.py and enroot.py are in ``*_faults.yaml``.
"""
