"""The KV cache: blocks of 32 positions, with keys rotated when written (roped) or when read (raw).

blocks        the pool of blocks, and block tables: which slots hold which tokens
kv_cache      the two strategies, and what the forward pass and edits ask of them
kv_storage    the memory behind the blocks: f16, f32, or quantized
rope          angles: the tables of cos and sin that kernels read
batch         the flat arrays of a forward pass
prefix_cache  finds blocks that hold the beginning of a prompt already
"""
