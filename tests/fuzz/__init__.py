"""Fuzzing of everything that the engine reads: `make fuzz`, or `python -m tests.fuzz -help=1`.

An input is one byte that says what it is (`targets.INPUTS`), then a file or a text. `seeds` writes
the first inputs, `mutate` and the modules named after it change them along their structure,
`targets` hands them to the engine. Needs the extra `fuzz` (atheris, https://pypi.org/p/atheris).
"""
