"""Results: reads a job's output, checks it, and writes result files, logs and `summary.json` into the workspace.

Input: the job's directories, what the plan expects, and when the run began. Output: the measured points, problems and
doubts, and the job's logs without secrets. Start with collect.py. validate.py checks one result file and evaluations.py
the files of an evaluation. document.py reads them; contradictions.py and own_numbers.py (both pure) contain the checks,
which refusals.yaml names and explains. logs.py keeps the logs, also while the job runs. summary.py writes
`summary.json`, summary_file.py reads it.

InferenceX's aggregates of results are computed without any check: aggregates.py writes `agg_*.json`, from row_fields.py
and row_fields.yaml for fixed lengths, agentic_rows.py (and server_metrics.py) for replays, evaluation_rows.py for
evaluations. power.py adds the power of one node, power_package.py (and power_windows.py) that of several.
"""
