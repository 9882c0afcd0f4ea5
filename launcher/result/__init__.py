"""Results: from a job's own directory to files in the workspace, `summary.json` and a table that can be believed.

In comes where the job wrote, what was asked for and when the run began; out come the points measured, what is missing
or not believable, and the job's logs without secrets. Start with collect.py. validate.py judges one result file and
evaluations.py those of an evaluation: document.py reads them, and contradictions.py, fixed_numbers.py and
agentic_numbers.py, which are pure, say what contradicts them. logs.py keeps the logs, also while the job still runs;
refusals.py names the checks; summary.py only formats.
"""
