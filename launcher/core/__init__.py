"""What every room uses and no room owns; nothing here imports another room.

errors.py is the tree of errors with their exit codes: open it first. process.py runs programs, and says which process
runs on which host; publish.py writes files that are whole or absent, lease.py locks; rights.py knows whose files are
and what others may do with ours, leftovers.py removes what killed processes leave; stop.py and waiting.py are for what
takes long. reading.py reads files that others may have damaged, and yaml_source.py YAML with lines, which its errors
and finding.py name. state.py says where the launcher's own directory is. lines.py makes the tables and lines that
commands show. redact.py takes secrets out, github.py speaks to the Actions runner, slurm_notation.py reads Slurm's
times and host lists, and shipped.py finds the files that come with the package.
"""
