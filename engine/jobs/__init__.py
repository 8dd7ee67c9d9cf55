"""Batches: many rows, computed together, which may be interrupted.

rows        lines of a batch: what each asks for, its seed, its id
answers     what a row becomes: requests for the engine, and the line of the output
batch       computes rows, many at a time
journal     rows that are done, on disk
files       `lariat batch`: an input, a journal, an output
frames      rows as columns: arrays, pandas, pyarrow
tables      rows and answers in Parquet and CSV
worker      BatchWorker: the same for processes of Dask, Ray, Spark and others
evaluation  the model of lm-evaluation-harness
"""
