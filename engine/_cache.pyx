"""The cache's memory: its layout, how keys and values get into it, how stored keys are turned.

Conventions are those of _kernels.pyx, whose table of tiles is used here: `store` and `shift` are
steps of a program.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport abs
from libc.string cimport memcpy

from engine._kernels cimport (
    C_F16, C_F32, SLOTS, Rope, cache_row_bytes, cache_unit_bytes, kernels_t, rope_t, table
)
from engine._program cimport Step

cdef kernels_t *KERNELS = table()


_TYPES = {"f16": C_F16, "f32": C_F32}


cdef int type_number(str name) except -1:
    if name not in _TYPES:
        raise ValueError(f"a cache type {name!r}, expected one of {', '.join(_TYPES)}")
    return _TYPES[name]


def head_block_bytes(str type, Py_ssize_t head_dim):
    """Bytes of 32 positions of one KV head, keys or values."""
    return cache_unit_bytes(type_number(type), head_dim)


cdef class Pool:
    """The memory of the cache: [layer][block][kv_head][32 slots][head_dim], keys and values apart.

    k, v uint8 [bytes], 64-byte aligned, of the types named
    """

    def __init__(self, uint8_t[::1] k, uint8_t[::1] v, Py_ssize_t n_layers, Py_ssize_t n_blocks,
                 Py_ssize_t n_kv_heads, Py_ssize_t head_dim_k, Py_ssize_t head_dim_v, str type_k,
                 str type_v):
        n = n_layers * n_blocks * n_kv_heads
        if (k.shape[0] != n * head_block_bytes(type_k, head_dim_k)
                or v.shape[0] != n * head_block_bytes(type_v, head_dim_v)):
            raise ValueError("the memory of the cache has another size than its shape")
        self.k, self.v = k, v
        self.type_k, self.type_v = type_number(type_k), type_number(type_v)
        self.n_layers, self.n_blocks, self.n_kv_heads = n_layers, n_blocks, n_kv_heads
        self.head_dim_k, self.head_dim_v = head_dim_k, head_dim_v

    cdef cells_t keys(self, Py_ssize_t layer):
        return cells_of(self, self.k, self.type_k, self.head_dim_k, layer)

    cdef cells_t values(self, Py_ssize_t layer):
        return cells_of(self, self.v, self.type_v, self.head_dim_v, layer)


cdef cells_t cells_of(Pool pool, uint8_t[::1] memory, int type, Py_ssize_t d, Py_ssize_t layer):
    cdef cells_t c
    c.type, c.d, c.n_heads, c.n_blocks = type, d, pool.n_kv_heads, pool.n_blocks
    c.row, c.unit = cache_row_bytes(type, d), cache_unit_bytes(type, d)
    c.base = &memory[0] + layer * c.n_blocks * c.n_heads * c.unit
    return c


cdef struct store_t:
    float *k
    const float *v
    cells_t keys, values
    const rope_t *rope  # NULL: keys are stored as they are
    const int32_t *positions
    const int32_t *slots
    int64_t n, per_task


cdef class _Store(Step):
    cdef store_t a


def store(Pool pool, Py_ssize_t layer, float[:, :, ::1] k, const float[:, :, ::1] v,
          const int32_t[::1] slots, Rope rope=None, const int32_t[::1] positions=None):
    """Write keys and values of new tokens into their slots, keys rotated if `rope` is given.

    k float32 [n_tokens, n_kv_heads, head_dim_k]  # IN OUT, rotated in place
    v float32 [n_tokens, n_kv_heads, head_dim_v]  # IN
    slots int32 [n_tokens]  # IN, block * 32 + slot; positions int32 [n_tokens]  # IN
    """
    cdef Py_ssize_t n = k.shape[0]
    if (v.shape[0] != n or slots.shape[0] != n or k.shape[1] != pool.n_kv_heads
            or v.shape[1] != pool.n_kv_heads or k.shape[2] != pool.head_dim_k
            or v.shape[2] != pool.head_dim_v or not 0 <= layer < pool.n_layers
            or rope is not None and (positions.shape[0] != n or rope.head_dim != k.shape[2])):
        raise ValueError("store of arrays that do not fit the cache")
    cdef _Store step = _Store()
    cdef store_t *a = &step.a
    a.n, a.keys, a.values = n, pool.keys(layer), pool.values(layer)
    a.rope = NULL
    if n:
        a.k, a.v, a.slots = &k[0, 0, 0], &v[0, 0, 0], &slots[0]
        if rope is not None:
            a.rope, a.positions = &rope.table, &positions[0]
    a.per_task = max(1, TASK_FLOATS // (pool.n_kv_heads * (a.keys.d + a.values.d)))
    step.bind(store_task, a, (n + a.per_task - 1) // a.per_task,
              (pool, k, v, slots, rope, positions))
    return step


cdef void store_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const store_t *a = <const store_t *>args
    cdef int64_t i, h, n_heads = a.keys.n_heads, dk = a.keys.d
    cdef float *k
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        k = a.k + i * n_heads * dk
        if a.rope != NULL:
            for h in range(n_heads):
                KERNELS.rope_head(k + h * dk, a.rope.rows + a.positions[i] * dk, dk // 2, 1)
        store_token(k, &a.keys, a.slots[i])
        store_token(a.v + i * n_heads * a.values.d, &a.values, a.slots[i])


cdef void store_token(const float *x, const cells_t *cells, int64_t at) noexcept nogil:
    cdef int64_t h
    for h in range(cells.n_heads):
        store_row(x + h * cells.d, cells.type, cells.d,
                  row_of(cells, at // SLOTS, h, at % SLOTS))


cdef inline void store_row(const float *x, int type, int64_t d, uint8_t *out) noexcept nogil:
    if type == C_F32:
        memcpy(out, x, d * 4)
    else:
        KERNELS.to_f16(x, d, <uint16_t *>out)


cdef struct shift_t:
    cells_t keys  # of the first layer
    const rope_t *rope
    const int32_t *moved  # [n][4]: block, first slot, length, by how many positions
    int64_t n


cdef class _Shift(Step):
    cdef shift_t a


def shift(Pool pool, Rope rope, const int32_t[:, ::1] moved):
    """Rotate stored keys by a further angle, in all layers: what a rotated key needs to stand at
    another position.

    moved int32 [n, 4]  # IN block, first slot, length, positions to move by (negative: backwards)
    """
    cdef Py_ssize_t i
    if rope.head_dim != pool.head_dim_k or moved.shape[1] != 4:
        raise ValueError("a shift that does not fit the cache")
    for i in range(moved.shape[0]):
        if (min(moved[i, 0], moved[i, 1], moved[i, 2]) < 0 or moved[i, 0] >= pool.n_blocks
                or moved[i, 1] + moved[i, 2] > SLOTS or abs(moved[i, 3]) >= rope.n_positions):
            raise ValueError("a shift of keys outside of the pool, or beyond the RoPE table")
    cdef _Shift step = _Shift()
    cdef shift_t *a = &step.a
    a.keys, a.rope, a.n = pool.keys(0), &rope.table, moved.shape[0]
    if a.n:
        a.moved = &moved[0, 0]
    step.n_work = 2 * a.keys.d
    step.bind(shift_task, a, pool.n_layers * a.n, (pool, rope, moved))
    return step


cdef void shift_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One segment in one layer."""
    cdef const shift_t *a = <const shift_t *>args
    cdef const int32_t *seg = a.moved + task % a.n * 4
    cdef int64_t d = a.keys.d, head, i, block = task // a.n * a.keys.n_blocks + seg[0]
    cdef const float *row = a.rope.rows + abs(seg[3]) * d
    cdef uint8_t *key
    for head in range(a.keys.n_heads):
        for i in range(seg[2]):
            key = row_of(&a.keys, block, head, seg[1] + i)
            if a.keys.type == C_F32:
                memcpy(work, key, d * sizeof(float))
            else:
                KERNELS.to_f32(<uint16_t *>key, d, work)
            if seg[3] >= 0:
                KERNELS.rope_head(work, row, d // 2, 1)
                store_row(work, a.keys.type, d, key)
            else:
                KERNELS.rotate_back(work, row, d // 2, work + d)
                store_row(work + d, a.keys.type, d, key)
