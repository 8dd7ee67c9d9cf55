"""The cache's memory: its layout, how keys and values get into it, how stored keys are turned.

Conventions are those of _kernels.pyx, whose table of tiles is used here: `store`, `shift` and
`seal` are steps of a program.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport abs
from libc.string cimport memcpy

from lariat._kernels cimport (
    BLOCK, C_F16, C_F32, C_Q4_0, C_Q4_CH, C_Q8_0, C_Q8_CH, MAX_HEAD_DIM, N_FLOAT_TYPES, SLOTS,
    Rope, cache_row_bytes, cache_scale_bytes, kernels_t, rope_t, table
)
from lariat._program cimport Operation

cdef kernels_t *KERNELS = table()


_TYPES = {
    "f16": C_F16, "f32": C_F32, "q8_0": C_Q8_0, "q4_0": C_Q4_0, "q8_ch": C_Q8_CH, "q4_ch": C_Q4_CH
}


def layout(str type, Py_ssize_t head_dim):
    """How keys or values lie in memory: bytes of a slot's row, bytes of scales behind a block's 32
    rows of one KV head, and whether those belong to channels (else to slots).

    ValueError if `head_dim` cannot be cut into blocks of 32 for a type that needs them.
    """
    n = _TYPES[type]
    if n >= N_FLOAT_TYPES and (head_dim % BLOCK or head_dim > MAX_HEAD_DIM):
        raise ValueError(f"a cache of type {type} needs a head_dim that divides by {BLOCK}, "
                         f"and this one is {head_dim}")
    return cache_row_bytes(n, head_dim), cache_scale_bytes(n, head_dim), n >= C_Q8_CH


cdef class Pool:
    """The memory of the cache: [layer][block][kv_head][32 slots][head_dim], keys and values apart.

    k, v uint8 [bytes], 64-byte aligned, of the types named. For types by channel also the blocks
    that are not quantized: open_k, open_v uint8 [bytes], f16
    [place][layer][kv_head][32 slots][head_dim]; open_at int32 [n_blocks], each block's place there
    or -1, looked up whenever a step runs.
    """

    def __init__(self, uint8_t[::1] k, uint8_t[::1] v, Py_ssize_t n_layers, Py_ssize_t n_blocks,
                 Py_ssize_t n_kv_heads, Py_ssize_t head_dim_k, Py_ssize_t head_dim_v, str type_k,
                 str type_v, uint8_t[::1] open_k=None, uint8_t[::1] open_v=None,
                 const int32_t[::1] open_at=None):
        cdef Py_ssize_t row, scales, n = n_layers * n_blocks * n_kv_heads
        for memory, type, d, more in ((k, type_k, head_dim_k, open_k),
                                      (v, type_v, head_dim_v, open_v)):
            row, scales, by_channel = layout(type, d)
            if memory.shape[0] != n * (SLOTS * row + scales) or by_channel and (
                    more is None or more.shape[0] != n * SLOTS * d * 2
                    or open_at is None or open_at.shape[0] != n_blocks):
                raise ValueError("the memory of the cache has another size than its shape")
        self.k, self.v, self.open_k, self.open_v, self.open_at = k, v, open_k, open_v, open_at
        self.type_k, self.type_v = _TYPES[type_k], _TYPES[type_v]
        self.n_layers, self.n_blocks, self.n_kv_heads = n_layers, n_blocks, n_kv_heads
        self.head_dim_k, self.head_dim_v = head_dim_k, head_dim_v

    cdef cells_t keys(self, Py_ssize_t layer) noexcept:
        return cells_of(self, self.k, self.open_k, self.type_k, self.head_dim_k, layer)

    cdef cells_t values(self, Py_ssize_t layer) noexcept:
        return cells_of(self, self.v, self.open_v, self.type_v, self.head_dim_v, layer)


cdef cells_t cells_of(Pool pool, uint8_t[::1] memory, uint8_t[::1] more, int type, Py_ssize_t d,
                      Py_ssize_t layer) noexcept:
    cdef cells_t c
    c.type, c.d, c.n_heads = type, d, pool.n_kv_heads
    c.n_blocks, c.n_layers = pool.n_blocks, pool.n_layers
    c.unit = SLOTS * cache_row_bytes(type, d) + cache_scale_bytes(type, d)
    c.base = &memory[0] + layer * c.n_blocks * c.n_heads * c.unit
    c.open_at, c.open = NULL, NULL
    if type >= C_Q8_CH:
        c.open_at, c.open = &pool.open_at[0], &more[0] + layer * c.n_heads * SLOTS * d * 2
    return c


cdef struct store_t:
    float *k
    const float *v
    cells_t keys, values
    const rope_t *rope  # NULL: keys are stored as they are
    const int32_t *positions
    const int32_t *slots
    int64_t n, per_task


cdef class _Store(Operation):
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
    cdef int type
    cdef uint8_t *unit
    for h in range(cells.n_heads):
        unit = unit_of(cells, at // SLOTS, h, &type)
        store_row(x + h * cells.d, unit, type, <int>(at % SLOTS), cells.d)


cdef inline void store_row(const float *x, uint8_t *unit, int type, int slot,
                           int64_t d) noexcept nogil:
    if type == C_F32:
        memcpy(unit + slot * d * 4, x, d * 4)
    elif type == C_F16:
        KERNELS.to_f16(x, d, <uint16_t *>unit + slot * d)
    else:
        KERNELS.quantize[type](x, slot, d, unit)


cdef struct shift_t:
    cells_t keys  # of the first layer
    const rope_t *rope
    const int32_t *moved  # [n][4]: block, first slot, length, by how many positions
    const int32_t *layers  # NULL: all
    int64_t n


cdef class _Shift(Operation):
    cdef shift_t a


def shift(Pool pool, Rope rope, const int32_t[:, ::1] moved, const int32_t[::1] layers=None):
    """Rotate stored keys by a further angle: what a rotated key needs to stand at another position.
    Quantized ones are quantized anew, those by channel are refused.

    moved int32 [n, 4]  # IN block, first slot, length, positions to move by (negative: backwards)
    layers int32 [n_layers]  # IN whose keys are rotated; None: those of all layers
    """
    cdef Py_ssize_t i, n_layers = pool.n_layers if layers is None else layers.shape[0]
    if rope.head_dim != pool.head_dim_k or moved.shape[1] != 4 or pool.type_k >= C_Q8_CH:
        raise ValueError("a shift that does not fit the cache")
    for i in range(moved.shape[0]):
        if (min(moved[i, 0], moved[i, 1], moved[i, 2]) < 0 or moved[i, 0] >= pool.n_blocks
                or moved[i, 1] + moved[i, 2] > SLOTS or abs(moved[i, 3]) >= rope.n_positions):
            raise ValueError("a shift of keys outside of the pool, or beyond the RoPE table")
    for i in range(0 if layers is None else n_layers):
        if not 0 <= layers[i] < pool.n_layers:
            raise ValueError(f"layer {layers[i]}, expected 0 to {pool.n_layers - 1}")
    cdef _Shift step = _Shift()
    cdef shift_t *a = &step.a
    a.keys, a.rope, a.n = pool.keys(0), &rope.table, moved.shape[0]
    if a.n:
        a.moved = &moved[0, 0]
    a.layers = NULL
    if layers is not None and n_layers:
        a.layers = &layers[0]
    step.n_work = 2 * a.keys.d
    step.bind(shift_task, a, n_layers * a.n, (pool, rope, moved, layers))
    return step


cdef void shift_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One segment in one layer."""
    cdef const shift_t *a = <const shift_t *>args
    cdef const int32_t *seg = a.moved + task % a.n * 4
    cdef int64_t d = a.keys.d, head, i, layer = task // a.n, block
    cdef const float *row = a.rope.rows + abs(seg[3]) * d
    cdef uint8_t *unit
    cdef int type, slot
    if a.layers != NULL:
        layer = a.layers[layer]
    block = layer * a.keys.n_blocks + seg[0]
    for head in range(a.keys.n_heads):
        unit = unit_of(&a.keys, block, head, &type)
        for i in range(seg[2]):
            slot = <int>(seg[1] + i)
            if type == C_F32:
                memcpy(work, unit + slot * d * 4, d * sizeof(float))
            elif type == C_F16:
                KERNELS.to_f32(<uint16_t *>unit + slot * d, d, work)
            else:
                KERNELS.dequantize[type](unit, slot, 1, d, work)
            if seg[3] >= 0:
                KERNELS.rope_head(work, row, d // 2, 1)
                store_row(work, unit, type, slot, d)
            else:
                KERNELS.rotate_back(work, 1, row, d // 2, work + d)
                store_row(work + d, unit, type, slot, d)


cdef struct seal_t:
    cells_t keys, values  # of the first layer
    const int32_t *blocks
    int64_t n


cdef class _Seal(Operation):
    cdef seal_t a


def seal(Pool pool, const int32_t[::1] blocks):
    """Quantize the keys and values of open blocks, in all layers, where their type is by channel.

    blocks int32 [n]  # IN; their open places are read, and given up by who set `open_at`
    """
    cdef Py_ssize_t i
    for i in range(blocks.shape[0]):
        if not 0 <= blocks[i] < pool.n_blocks or pool.open_at[blocks[i]] < 0:
            raise ValueError(f"block {blocks[i]} is not open")
    cdef _Seal step = _Seal()
    cdef seal_t *a = &step.a
    a.keys, a.values, a.n = pool.keys(0), pool.values(0), blocks.shape[0]
    if a.n:
        a.blocks = &blocks[0]
    step.n_work = SLOTS * max(a.keys.d, a.values.d)
    step.bind(seal_task, a, pool.n_layers * a.n, (pool, blocks))
    return step


cdef void seal_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One block in one layer."""
    cdef const seal_t *a = <const seal_t *>args
    seal_cells(&a.keys, a.blocks[task % a.n], task // a.n, work)
    seal_cells(&a.values, a.blocks[task % a.n], task // a.n, work)


cdef void seal_cells(const cells_t *c, int64_t block, int64_t layer, float *work) noexcept nogil:
    cdef int64_t head
    cdef int type
    if c.open_at == NULL:
        return
    for head in range(c.n_heads):
        KERNELS.to_f32(<uint16_t *>unit_of(c, block, layer * c.n_heads + head, &type),
                       SLOTS * c.d, work)
        KERNELS.quantize[c.type](
            work, 0, c.d, c.base + ((layer * c.n_blocks + block) * c.n_heads + head) * c.unit
        )
