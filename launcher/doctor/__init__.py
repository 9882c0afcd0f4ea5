"""The doctor compares a runner file with the live cluster, claim by claim, and drafts a file for a new cluster.

In come a runner file and what the cluster answers: Slurm's commands, git, and host.sh, which runs here and on one node,
there with what jobs look at (`node_looks`); `queries` asks. Out come claims, each with the line of the file that it is
about, or the text of a draft (draft.yaml). Open `comparison` first: its tables say which fact speaks about which key;
`facts` are all that can be known.

`step` is about less: what a step of a GitHub workflow lacks on its host, before it launches anything.

Nobody imports `import_proof`: it is a program, which runs here or on a node and has enroot import a tiny image.

`comparison` and `scheduling` are pure (a contract in pyproject.toml), so that tests can judge made-up clusters: they
must not import `programs`, which reads what the programs print.
"""
