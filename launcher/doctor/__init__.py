"""The doctor compares a runner file with the live cluster, key by key, and drafts a file for a new cluster.

The input is a runner file and the cluster's answers: those of Slurm's commands, of git, and of host.sh, which runs here
and on one node, there with the checks that jobs make (`node_checks`). `queries` collects them. The output is claims,
each with its line of the file, or the text of a draft (draft.yaml). Open `comparison` first: its tables have the fact
for each key; `facts` defines all facts.

`step` is smaller: it finds what a step of a GitHub workflow lacks on its host, before anything is launched.

No module imports `import_proof`. It is a program, which runs here or on a node and has enroot import a tiny image.

`comparison` and `scheduling` are pure (a contract in pyproject.toml), so that tests can use made-up clusters: they must
not import `programs`, which parses the output of programs.
"""
