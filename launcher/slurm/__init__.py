"""Jobs in Slurm: which job is meant, how it stands, how it is ended; or an embedded scheduler where there is no Slurm.

In come job keys (id, submit time, token) and the paths of logs; out come job states, and errors when nobody can say.
Open client.py first: the interface `Scheduler` and its words. `launcher.services` chooses an implementation:
commands.py (by squeue, sacct, scontrol, scancel, whose answers answers.py reads), native.py (by pyslurm), local.py
(embedded).
poller.py follows jobs to their ends, shared.py lets launchers share their questions.

Modules with a single importer: native_worker.py is a program of its own, which starts without the rest; logs.py is
about files only.
"""
