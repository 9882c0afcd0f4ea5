"""Many benchmarks: the matrix and what is selected of it, the runs' ledger, driving them."""
