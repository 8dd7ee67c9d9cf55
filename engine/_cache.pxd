"""Where keys and values stand, for the kernels that write and read them."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from lariat._kernels cimport C_F16, SLOTS

cdef enum: TASK_FLOATS = 4096  # that a task touches at least: enough to pay for taking it

cdef struct cells_t:  # keys or values of one layer: [block][kv_head][32 slots][d]
    uint8_t *base
    int type
    int64_t d, n_heads, n_blocks, n_layers
    int64_t unit            # bytes of a block's slots of one head
    # Types by channel: blocks that are not full yet, as f16 [place][layer][kv_head][32 slots][d]
    const int32_t *open_at  # [n_blocks]: its place, -1 for a block that is quantized; or NULL
    uint8_t *open


cdef inline uint8_t *unit_of(const cells_t *c, int64_t block, int64_t head,
                             int *type) noexcept nogil:
    """A block's slots of one head, and the type they have there."""
    if c.open_at != NULL and c.open_at[block] >= 0:
        type[0] = C_F16
        return c.open + (c.open_at[block] * c.n_layers * c.n_heads + head) * SLOTS * c.d * 2
    type[0] = c.type
    return c.base + (block * c.n_heads + head) * c.unit


cdef class Pool:
    cdef readonly Py_ssize_t n_layers, n_blocks, n_kv_heads, head_dim_k, head_dim_v
    cdef uint8_t[::1] k, v, open_k, open_v
    cdef const int32_t[::1] open_at
    cdef int type_k, type_v

    cdef cells_t keys(self, Py_ssize_t layer) noexcept
    cdef cells_t values(self, Py_ssize_t layer) noexcept
