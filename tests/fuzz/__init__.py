"""Fuzzing of everything that the engine reads: `make fuzz`, or `python -m tests.fuzz -help=1`.

An input is one byte for its type (`targets.INPUTS`), then a file or a text. `seeds` writes first
inputs, `mutate` and the modules that are named after it change them along their structure, and
`targets` gives them to the engine. Needs the extra `fuzz` (atheris, https://pypi.org/p/atheris).
"""
