"""Files: reading and checking them, and writing whole ones. Nothing of the engine is needed here.

file_bytes      the bytes of a file, mapped or read
block_formats   types of weights: blocks, decoding, rounding, in NumPy
table_formats   decoding of the types whose integers point into a table
gguf            a GGUF file: metadata, tensors, views of their bytes
string_array    strings of its metadata, decoded when they are read
gguf_split      a model of one GGUF file, or of several
gguf_sampling   the sampling that a model's file asks for
imatrix         importance matrices: how large the inputs of each column of a matrix were
finite          looks for NaN and Inf in all weights of a file
atomic          files that appear whole or not at all
safetensors_io  header, version, checksum and signature of Lariat's own files
segments        the tensor that says which slots of which blocks hold the tokens
context_file    a context: tokens with their keys and values
prepared_file   interleaved weights, which processes map and share
chunk_file      a chunk of a library, placed into the cache by mapping its file
"""
