"""Reports: what was measured, what was not and why, as one value and from it everything that people look at.

In come run records, sweeps, directories of aggregates and downloaded artifact trees; out come a terminal view, a page,
JSON, CSV, JUnit and Markdown. Start with document.py, which is that value. gather.py finds out what a name stands for,
and reads trees; records.py and sweeps.py read runs; assemble.py puts attempts together. points.py (with metrics.yaml)
says what a point is, when two are the same one, and which are on the frontier; comparison.py holds two sets of points
beside each other. page.py, with page.css, page.js and chart.py, makes the page, files.py and terminal.py the rest.
"""
