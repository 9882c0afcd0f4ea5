"""launcher: puts LLM-inference benchmarks onto Slurm clusters. See docs/design.md."""

__version__ = "0.1.0"
