"""Results: from a job's own directory to files in the workspace, `summary.json` and a table that can be believed.

In comes where the job wrote, what was asked for and when the run began; out come the points measured, what is missing
or not believable, and the job's logs without secrets. Start with collect.py. validate.py judges one result file and
evaluations.py those of an evaluation: document.py reads them, and contradictions.py and own_numbers.py, which are pure,
say what contradicts them, by checks that refusals.yaml names. logs.py keeps the logs, also while the job still runs;
summary.py only formats, and summary_file.py reads that again.

What InferenceX publishes of a result is arithmetic that judges nothing: aggregates.py (`agg_*.json`), with the fields
of row_fields.py and row_fields.yaml for fixed lengths, agentic_rows.py (and server_metrics.py) for replays,
evaluation_rows.py for evaluations; power.py is about one node, power_package.py (and power_windows.py) about several.
"""
