"""Jobs in Slurm: which job is meant, how it stands, how it is ended; or an embedded scheduler where there is no Slurm.

In come job keys (id, submit time, token) and the paths of logs; out come job states, and errors when nobody can say.
Open client.py first: the interface `Scheduler` and its words. backends.py chooses an implementation: commands.py (by
squeue, sacct, scontrol, scancel; answers.py reads what they print), native.py (by pyslurm), local.py (embedded).
poller.py follows jobs to their ends, end_jobs.py sees them gone, shared.py lets launchers share their questions.

Modules with a single importer: native_worker.py and supervisor.py are programs of their own, run as processes;
logs.py is about files only; states.py is Slurm's vocabulary, which changes with Slurm's releases.
"""
