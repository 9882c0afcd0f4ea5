"""A whole run on a laptop: stand-ins for enroot, srtctl, srt-slurm, a checkpoint and the engine.

They keep the contracts that were recorded of the real programs, so a rehearsed run goes the same way as a real one; all
that they leave behind is marked as a rehearsal. Start with tools.py: a run asks it for what to put on PATH. Each
``…_stand_in.py`` stands for the thing in its name; srtctl_jobs.py is the half of srtctl's that makes a job (both halves
in one file would be 500 lines), engine_stand_in.py runs inside the job. queueing.py (numbers) and squashfs.py (a file
format) are apart because each has a specification of its own to be checked against.
"""
