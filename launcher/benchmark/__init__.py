"""What is to be measured: the environment of a GitHub job, or the rows of a matrix, become `Benchmark`s.

Start with `benchmark` (the value that everything behind this room works on) and `fields` (one table: attribute,
variable of a job, key of a matrix entry). `environment` reads a job's variables, and writes them for the job that is
submitted; `contracts` stays apart from it as pure data: which variables jobs of several nodes have, and jobs of one
node. `matrix` reads InferenceX's matrix files and gives the entries that a `Selection` wants, each with its
benchmark; `family` reads one key of such a file, apart from it so that what is wrong with a row stops at the row.
`matrix_schema` and `expand` (which rows are wanted, and what they expand to) stay apart from it because each follows a
file of InferenceX's, its validation and its generator, and is to be compared with that.
"""
