"""A cluster as its runner file describes it (runners/*.yaml): facts, and rules that name the benchmarks they are for.

A YAML file comes in; a typed `Runner` and the rule that applies to a `Benchmark`, with its line, go out. Open `schema`
first: its fields are the keys of a file. `file` finds the rule that applies, and fills in templates; `fleet` finds the
file that a name means. `json_schema` makes the schema that editors read; it stays apart because it reads `schema` as
source text.
"""
