"""Runs: from a plan to an outcome, with a record on disk that any other process can go on from.

In come runs, each of a kind of job (kind.py), and the services by which they reach the world; out come outcomes, and
what lies in the record. Open loop.py first: it brings runs to their ends. prepare.py goes from a plan to a submitted
job, finish.py from an ended job to an outcome, record.py is the run on disk (fields.py what it says of itself, and
whether that can be believed, listing.py all that there are, naming.py which one a person means), orphans.py ends what
nobody drives.

Modules with a single importer: verdict.py decides from what is known, and writes nothing. What failed first by the
logs comes from log_lines.py (lines as they are meant), log_failure.py (one log, by the words of log_words.yaml) and
failures.py (all). prepare.py and threads.py are the loop's threads, which share nothing with it but what they are
given.
"""
