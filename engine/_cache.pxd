"""Where keys and values stand, for the kernels that write and read them."""

from libc.stdint cimport int64_t, uint8_t

cdef enum: TASK_FLOATS = 4096  # that a task touches at least: enough to pay for taking it

cdef struct cells_t:  # keys or values of one layer: [block][kv_head][32 slots][d]
    uint8_t *base
    int type
    int64_t d, n_heads, n_blocks
    int64_t row, unit  # bytes of a slot, and of a block's slots of one head


cdef inline uint8_t *row_of(const cells_t *c, int64_t block, int64_t head,
                            int64_t slot) noexcept nogil:
    return c.base + (block * c.n_heads + head) * c.unit + slot * c.row


cdef class Pool:
    cdef readonly Py_ssize_t n_layers, n_blocks, n_kv_heads, head_dim_k, head_dim_v
    cdef uint8_t[::1] k, v
    cdef int type_k, type_v

    cdef cells_t keys(self, Py_ssize_t layer)
    cdef cells_t values(self, Py_ssize_t layer)
