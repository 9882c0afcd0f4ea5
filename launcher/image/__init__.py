"""Container images as squash files: what a reference means, whether a file is whole, and how one gets into place.

A `PlannedImage` (part of the plan) and an `ImportPolicy` come in; a `PlacedImage` goes out, which names the squash
file, or an ImageError is raised. Open store.py first (`ensure_image`), which has the steps in their order. inventory.py
and usage.py are for `launcher image list`, `verify` and `gc`, probe.py for `launcher doctor locks`. requests.py has one
importer: it makes requests as curl does, and registry.py knows what images are. die_with_parent.py is run by its path
and imported by no module. The tables of reference.py and enroot.py are in ``*_faults.yaml``.
"""
