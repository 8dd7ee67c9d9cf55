"""Measuring speed: what `lariat bench` is made of.

    benchmark    runs cases on one model, in turns
    cases        cases, what each must read and multiply at least, and results
    disturbance  CPU time that others take meanwhile
    machine      ceilings of this machine, pinned threads, peak memory
    plots        pictures of the results

Imports architectures, cache and runtime; only the command line and `bench/` import it.
"""
