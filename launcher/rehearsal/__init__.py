"""A whole run on a laptop: stand-ins for enroot, srtctl, srt-slurm, srun, docker, a checkpoint and the engine.

They behave as the real programs were recorded, so a rehearsed run goes the same way as a real one; all their output is
marked as a rehearsal. Open stand_ins.py first: it gives a run the programs for PATH, and makes a checkpoint and a
repository from stand_ins.yaml. srtctl_stand_in.py is the program, srtctl_contract.py the files that it reads and writes
(both in one would be 600 lines). engine_stand_in.py runs inside its job, and results.py computes the numbers.
srun_stand_in.py and docker_stand_in.py run a benchmark's own script without a real container (containers.py), on one
node or on several, which are processes here; image_stand_in.py has the programs that the script calls. shadow.py is no
part of a rehearsal: it runs the bash launcher of a checkout in a sandbox, and compares its calls with a plan.
"""
