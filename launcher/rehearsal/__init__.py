"""A whole run on a laptop: stand-ins for enroot, srtctl, srt-slurm, a checkpoint and the engine.

They keep the contracts that were recorded of the real programs, so a rehearsed run goes the same way as a real one; all
that they leave behind is marked as a rehearsal. Start with tools.py: a run asks it for what to put on PATH. srtctl.py
and enroot.py are the programs, jobs.py is srtctl's half that makes a job (both halves in one file would be 500 lines),
engine.py is what runs inside the job. queueing.py (numbers) and squashfs.py (a file format) stand alone to be checked.
"""
