"""What is to be measured: rows of a matrix, or the environment of a GitHub job, become `Benchmark`s."""
