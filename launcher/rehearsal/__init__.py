"""A whole run on a laptop: stand-ins for enroot, srtctl, srt-slurm, srun, docker, a checkpoint and the engine.

They keep the contracts that were recorded of the real programs, so a rehearsed run goes the same way as a real one; all
that they leave behind is marked as a rehearsal. Start with stand_ins.py: a run asks it for what to put on PATH, and for
a checkpoint and a repository, made of stand_ins.yaml. srtctl_stand_in.py is the program, and srtctl_contract.py the
files that it reads and writes (both in one would be 600 lines). engine_stand_in.py runs inside its job, and results.py
has its numbers. srun_stand_in.py and docker_stand_in.py run a benchmark's own script in a container that is none
(containers.py), on one node or on several, which are processes here; image_stand_in.py is the programs that the script
calls. shadow.py is no part of a rehearsal: it runs a checkout's bash launcher where it can do nothing, and compares
what it calls with a plan.
"""
