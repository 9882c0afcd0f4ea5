"""A cluster as its runner file describes it (runners/*.yaml): facts, and rules that name the benchmarks they are for.

The input is a YAML file. The output is a typed `Runner`, and the rules that apply to a `Benchmark`, each with its line.
Open `schema` first: its fields are the keys of a file. `file` finds the rules that apply, and fills in templates;
`fleet` finds a runner's file by name. `json_schema` makes the schema for editors; it is a module of its own because it
parses the source text of `schema`.
"""
