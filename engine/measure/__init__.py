"""Measuring: what `lariat bench` is made of, and scores of reused keys and values.

    benchmark    runs cases on one model, in turns
    cases        cases, what each must read and multiply at least, and results
    disturbance  CPU time that others take meanwhile
    machine      ceilings of this machine, pinned threads, peak memory
    scaling      Amdahl's law and the roofline of a curve over threads
    plots        pictures of the results
    tuning       how many threads are fastest, found with few measurements
    chunk_check  what documents of a library lose when they are put together
    reuse_quality  answers behind reused documents, beside full prefill and no documents

Imports architectures, cache and runtime; only the command line and `bench/` import it.
"""
