"""Sweeps: many points that one person wants measured, with an id, a policy, and a ledger that outlives every process.

In come plans of selected rows and a policy; out come runs (`launcher.run`), events, and the state of every point. Open
schema.py first: what is wanted and what was decided, as types (`sweeps/<id>/sweep.json`, `events.jsonl`); ledger.py
keeps these files.
"""
