"""Aggregates: what InferenceX publishes of a result, as arithmetic that judges nothing.

In come a raw result and the variables of its job; out come rows (`agg_*.json`) equal to those of InferenceX's scripts,
and from rows points that can be drawn, put on a frontier and compared. Judging is the room `result`'s, and comes
before. Start with points.py and metrics.yaml.
"""
