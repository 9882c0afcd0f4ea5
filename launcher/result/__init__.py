"""Results: from a job's own directory to files, a summary and a table that can be believed."""
