"""Reports: build one value from measured, missing and invalid points, and render it in all its forms.

Input: run records, sweeps, directories of aggregates and downloaded artifact trees. Output: a terminal view, a page,
JSON, CSV, JUnit and Markdown. Start with document.py, which defines the value. gather.py resolves the sources and reads
trees; records.py, sweeps.py and history.py read runs; assemble.py groups attempts and builds the value. points.py (with
metrics.yaml) defines points, their identity and frontiers; comparison.py compares two reports. page.py, with page.css,
page.js and chart.py, renders the page, files.py and terminal.py the other forms.
"""
