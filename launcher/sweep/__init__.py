"""Sweeps: many points that one person wants measured, with an id, a policy, and a ledger that outlives every process.

In come jobs (benchmarks on runners, as data) and a policy; out come runs (`launcher.run`), events, and the state of
every point. Open schema.py first: what is wanted and what was decided, as types (`sweeps/<id>/sweep.json`,
`events.jsonl`); ledger.py keeps these files. driver.py brings a sweep to its end, as the feed of `launcher.run.loop`.

Pure: points.py (jobs, fingerprints, order, canaries), state.py (what events amount to, how each point stands), retry.py
(classes of failures), decide.py (what begins next, what follows from an end), overview.py (a sweep at one moment, for
people and JSON). Effects: attempts.py reads run records, making.py makes runs, and slots.py, with a single importer,
keeps room for jobs on a runner among several drivers.
"""
