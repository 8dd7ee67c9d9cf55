"""Benchmarks. docs/benchmarks.md says which one answers which question.

micro/         kernels, attention, loading, tokenizer, sampler, threads: `make bench`
experiments/   scripts that print a table each: depths, shift, chunks, endless, stretch, ...
peers          llama.cpp and transformers beside Lariat, by the processes in workers/
check_kernels  each kernel on random shapes against float64: `make check-kernels`
digests        logits of every type and instruction set, bit for bit: `make digests`
proofs         the table of docs/models.md: which architectures and types are proven, and how
grids          the grids of IQ types, as a header of the kernels holds them
refusals       time and memory that costly files take until they are refused
synthetic      models of real shapes with random weights: `make bench-models`
reuse_tasks    documents, questions and answers for experiments/reuse
reuse_readings  ways to reuse documents that the engine does not have, for experiments/reuse
choices        200 questions of common knowledge, for experiments/evaluation
cluster        a batch on many nodes, computed on paper, for experiments/cluster
cluster_runs   two real processes beside that, one of which is killed
filled         models whose caches are full of random keys and values, for the experiments
prose          text that lies on any machine with Python, for the experiments
results        figures in results/, rendered into docs/results.md: `make results`
"""
