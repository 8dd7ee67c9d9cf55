"""The KV cache: where keys and values of tokens are, how they are stored, how they are rotated.

    kv_cache      the two strategies, `roped` and `raw`: one set of verbs for the model
    kv_storage    the arrays of all blocks; types, quantization
    blocks        the pool of blocks; block tables: lists of segments
    prefix_cache  finds blocks that another prompt has filled
    window_only   gives back keys that no attention window shows any more
    rope          tables of cosines and sines, one for each distinct setting of the layers
    batch         the arrays that one forward pass computes from

Nothing here knows a file format, a request or a model's weights.
"""
