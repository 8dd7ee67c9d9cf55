"""Where keys and values stand, for the kernels that write and read them."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from lariat._kernels cimport C_F16, SLOTS, Rope

cdef enum: TASK_FLOATS = 4096  # that a task touches at least: enough to pay for taking it

cdef struct kv_t:  # keys, or values, of one layer: [block][kv_head][32 slots][d]
    uint8_t *base
    int type
    bint hadamard           # stored after a Hadamard transform, see Pool
    int64_t d, n_heads, n_blocks, n_layers
    int64_t block_bytes     # of a block's slots of one head
    # Types by channel: open blocks as f16 [place][layer][kv_head][32 slots][d]
    const int32_t *open_at   # [n_blocks]: its place, -1 for a block that is quantized; or NULL
    const uint8_t *is_full   # [n_blocks]: whether an open block is quantized too
    uint8_t *open


cdef inline uint8_t *block_of(const kv_t *kv, int64_t block, int64_t head,
                              int *type) noexcept nogil:
    """A block's slots of one head, and the type they have there, as they are written and as the
    block's own tokens see them."""
    if kv.open_at != NULL and kv.open_at[block] >= 0:
        type[0] = C_F16
        return kv.open + (kv.open_at[block] * kv.n_layers * kv.n_heads + head) * SLOTS * kv.d * 2
    type[0] = kv.type
    return kv.base + (block * kv.n_heads + head) * kv.block_bytes


cdef inline bint is_both(const kv_t *kv, int64_t block) noexcept nogil:
    """Whether a block is there twice: open, and quantized."""
    return kv.open_at != NULL and kv.open_at[block] >= 0 and kv.is_full[block]


cdef inline uint8_t *sealed_block_of(const kv_t *kv, int64_t block, int64_t head,
                                     int *type) noexcept nogil:
    """The same as tokens behind the block see them: quantized, once it is full."""
    if not is_both(kv, block):
        return block_of(kv, block, head, type)
    type[0] = kv.type
    return kv.base + (block * kv.n_heads + head) * kv.block_bytes


cdef class Pool:
    cdef readonly Py_ssize_t n_layers, n_blocks, n_kv_heads, head_dim_k, head_dim_v
    cdef uint8_t[::1] k, v, open_k, open_v
    cdef const int32_t[::1] open_at
    cdef const uint8_t[::1] is_full
    cdef int32_t[::1] filled       # [n_blocks]: blocks that the batch at hand fills
    cdef int64_t n_seal_tasks      # of a layer
    cdef int type_k, type_v
    cdef bint hadamard_k, hadamard_v

    cdef kv_t keys(self, Py_ssize_t layer) noexcept
    cdef kv_t values(self, Py_ssize_t layer) noexcept
    cdef int check_layer(self, Py_ssize_t layer) except -1
    cdef int check_rope(self, Rope rope) except -1
