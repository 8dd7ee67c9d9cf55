"""Measuring speed: the parts of `lariat bench`, which docs/benchmarks.md explains.

    cases      one test: prompt, tokens, depth, threads, cache; its costs and its results
    machine    the ceilings of this machine (read bandwidth, products a second), pinned threads
    benchmark  runs cases of one model in turns, and checks the logits
    plots      pictures of the results
"""
