"""Aggregates: what InferenceX publishes of a result, as arithmetic that judges nothing.

In come a raw result and the variables of its job; out come rows (`agg_*.json`) equal to those of InferenceX's scripts,
and from rows points that can be drawn, put on a frontier and compared. Judging is the room `result`'s, and comes
before. Start with points.py and metrics.yaml for points, with files.py and fields.yaml for rows: fields.py makes those
of fixed lengths, agentic.py (with server_metrics.py) those of replays, evaluations.py those of evaluations; power.py is
about one node, power_package.py (with power_windows.py) about several. compare.py holds two runs beside each other.
"""
