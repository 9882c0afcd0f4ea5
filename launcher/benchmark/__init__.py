"""What is to be measured: the environment of a GitHub job, or the rows of a matrix, become `Benchmark`s.

Start with `benchmark` (the value that all later rooms use) and `fields` (one table: attribute, variable of a job, key
of a matrix entry). `environment` reads a job's variables, and writes them for the job that is submitted; `contracts`
is pure data: the variables of jobs of several nodes and of one node. `matrix` reads InferenceX's matrix files and
returns the entries of a `Selection`, each with its benchmark; `family` reads one key of such a file, so that an invalid
row is refused alone. `matrix_schema` and `expand` (selecting and expanding rows) are apart because each follows a file
of InferenceX's, its validation and its generator, and is to be compared with it.
"""
