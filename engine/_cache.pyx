"""The cache's memory: its layout, how keys and values get into it, how stored keys are rotated.

The conventions of _kernels.pyx hold here too. `store`, `shift`, `seal` and `seal_filled` are
operations of a program.
"""

import numpy as np

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
    """How keys or values lie in memory, int, int, bool: bytes of a slot's row; bytes of scales
    behind a block's 32 rows of one KV head; whether a scale belongs to a channel (else to a slot).

    ValueError if `head_dim` cannot be cut into blocks of 32 for a type that needs them.
    """
    n = _TYPES[type]
    if n >= N_FLOAT_TYPES and (head_dim % BLOCK or head_dim > MAX_HEAD_DIM):
        raise ValueError(f"a cache of type {type} needs a head_dim that divides by {BLOCK}, "
                         f"and this one is {head_dim}")
    return cache_row_bytes(n, head_dim), cache_scale_bytes(n, head_dim), n >= C_Q8_CH


cdef class Pool:
    """The memory of the cache: [layer][block][kv_head][32 slots][head_dim], keys and values apart.

    k, v uint8 [bytes], 64-byte aligned, of the types named. Types by channel also need memory for
    blocks that are not quantized yet: open_k, open_v uint8 [bytes], f16
    [place][layer][kv_head][32 slots][head_dim]; open_at int32 [n_blocks], each block's place there
    or -1; is_full uint8 [n_blocks], 1 where a block with a place is quantized too, so that tokens
    behind it see it quantized (None: no block is). They are looked up whenever an operation runs.
    ValueError for memory of another size.

    With hadamard_k or hadamard_v, heads are stored times an orthonormal Hadamard matrix (blocks of
    the largest power of two that divides head_dim), which spreads a large number over all channels
    (QuaRot, arXiv 2404.00456). `attend` takes queries that were transformed like keys, and
    transforms the weighted sums of values back.
    """

    def __init__(self, uint8_t[::1] k, uint8_t[::1] v, Py_ssize_t n_layers, Py_ssize_t n_blocks,
                 Py_ssize_t n_kv_heads, Py_ssize_t head_dim_k, Py_ssize_t head_dim_v, str type_k,
                 str type_v, uint8_t[::1] open_k=None, uint8_t[::1] open_v=None,
                 const int32_t[::1] open_at=None, bint hadamard_k=False,
                 bint hadamard_v=False, const uint8_t[::1] is_full=None):
        self.n_layers, self.n_blocks, self.n_kv_heads = n_layers, n_blocks, n_kv_heads
        self.head_dim_k, self.head_dim_v = head_dim_k, head_dim_v
        self._check_memory("keys", type_k, head_dim_k, k, open_k, open_at)
        self._check_memory("values", type_v, head_dim_v, v, open_v, open_at)
        self.k, self.v, self.open_k, self.open_v, self.open_at = k, v, open_k, open_v, open_at
        self.type_k, self.type_v = _TYPES[type_k], _TYPES[type_v]
        self.hadamard_k, self.hadamard_v = hadamard_k, hadamard_v
        self.is_full = np.zeros(n_blocks, np.uint8) if is_full is None else is_full
        if self.is_full.shape[0] != n_blocks:
            raise ValueError(f"is_full has {self.is_full.shape[0]} marks for {n_blocks} blocks")
        self.filled, self.n_seal_tasks = np.zeros(n_blocks, np.int32), 0

    def fill(self, const int32_t[::1] blocks):
        """Have `seal_filled` quantize these open blocks, int32 [n], when it is run next."""
        cdef Py_ssize_t i
        self.n_seal_tasks = 0
        for i in range(blocks.shape[0]):
            check_open(self, blocks[i])
        for i in range(blocks.shape[0]):
            self.filled[i] = blocks[i]
        self.n_seal_tasks = blocks.shape[0] * self.n_kv_heads

    def _check_memory(self, str name, str type, Py_ssize_t d, const uint8_t[::1] memory,
                      const uint8_t[::1] open_memory, const int32_t[::1] open_at):
        row, scales, by_channel = layout(type, d)
        n = self.n_layers * self.n_blocks * self.n_kv_heads
        shape = (f"{self.n_layers} layers of {self.n_blocks} blocks of {self.n_kv_heads} heads of "
                 f"{d} {type}")
        if memory.shape[0] != n * (SLOTS * row + scales):
            raise ValueError(f"memory for {name} has {memory.shape[0]} bytes, but {shape} take "
                             f"{n * (SLOTS * row + scales)}")
        if not by_channel:
            return
        n_open = 0 if open_memory is None else open_memory.shape[0]
        if n_open != n * SLOTS * d * 2:
            raise ValueError(f"memory for open blocks of {name} has {n_open} bytes, but {shape} "
                             f"take {n * SLOTS * d * 2} as f16")
        n_places = 0 if open_at is None else open_at.shape[0]
        if n_places != self.n_blocks:
            raise ValueError(f"open_at has {n_places} places for {self.n_blocks} blocks")

    cdef kv_t keys(self, Py_ssize_t layer) noexcept:
        return kv_of(self, self.k, self.open_k, self.type_k, self.hadamard_k, self.head_dim_k,
                     layer)

    cdef kv_t values(self, Py_ssize_t layer) noexcept:
        return kv_of(self, self.v, self.open_v, self.type_v, self.hadamard_v, self.head_dim_v,
                     layer)

    cdef int check_layer(self, Py_ssize_t layer) except -1:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"layer {layer} of a cache of {self.n_layers}")
        return 0

    cdef int check_rope(self, Rope rope) except -1:
        if rope.head_dim != self.head_dim_k:
            raise ValueError(f"a RoPE table of head_dim {rope.head_dim} for keys of "
                             f"head_dim {self.head_dim_k}")
        return 0


cdef kv_t kv_of(Pool pool, uint8_t[::1] memory, uint8_t[::1] open_memory, int type, bint hadamard,
                Py_ssize_t d, Py_ssize_t layer) noexcept:
    cdef kv_t kv
    kv.hadamard = hadamard
    kv.type, kv.d, kv.n_heads = type, d, pool.n_kv_heads
    kv.n_blocks, kv.n_layers = pool.n_blocks, pool.n_layers
    kv.block_bytes = SLOTS * cache_row_bytes(type, d) + cache_scale_bytes(type, d)
    kv.base = &memory[0] + layer * kv.n_blocks * kv.n_heads * kv.block_bytes
    kv.open_at, kv.is_full, kv.open = NULL, NULL, NULL
    if type >= C_Q8_CH:
        kv.open_at, kv.is_full = &pool.open_at[0], &pool.is_full[0]
        kv.open = &open_memory[0] + layer * kv.n_heads * SLOTS * d * 2
    return kv


cdef struct store_t:
    float *k
    const float *v
    kv_t keys, values
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
    cdef Py_ssize_t n = k.shape[0], n_heads = pool.n_kv_heads
    pool.check_layer(layer)
    if (v.shape[0] != n or slots.shape[0] != n or k.shape[1] != n_heads
            or v.shape[1] != n_heads or k.shape[2] != pool.head_dim_k
            or v.shape[2] != pool.head_dim_v):
        raise ValueError(
            f"keys [{n}, {k.shape[1]}, {k.shape[2]}], values [{v.shape[0]}, {v.shape[1]}, "
            f"{v.shape[2]}] and slots [{slots.shape[0]}], but the cache takes "
            f"[n, {n_heads}, {pool.head_dim_k}], [n, {n_heads}, {pool.head_dim_v}] and [n]"
        )
    if rope is not None:
        pool.check_rope(rope)
        if positions is None or positions.shape[0] != n:
            n_positions = 0 if positions is None else positions.shape[0]
            raise ValueError(f"{n_positions} positions for {n} keys")
    cdef _Store operation = _Store()
    cdef store_t *a = &operation.a
    a.n, a.keys, a.values = n, pool.keys(layer), pool.values(layer)
    a.rope = NULL
    if n:
        a.k, a.v, a.slots = &k[0, 0, 0], &v[0, 0, 0], &slots[0]
        if rope is not None:
            a.rope, a.positions = &rope.table, &positions[0]
    a.per_task = max(1, TASK_FLOATS // (n_heads * (a.keys.d + a.values.d)))
    operation.n_work = max(a.keys.d, a.values.d)  # a transformed head
    operation.bind(store_task, a, (n + a.per_task - 1) // a.per_task,
                   (pool, k, v, slots, rope, positions))
    return operation


cdef void store_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const store_t *a = <const store_t *>args
    cdef int64_t i, h, n_heads = a.keys.n_heads, dk = a.keys.d
    cdef float *k
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        k = a.k + i * n_heads * dk
        if a.rope != NULL:
            for h in range(n_heads):
                KERNELS.rope_head(k + h * dk, a.rope.rows + a.positions[i] * dk, dk // 2, 1)
        store_token(k, &a.keys, a.slots[i], work)
        store_token(a.v + i * n_heads * a.values.d, &a.values, a.slots[i], work)


cdef void store_token(const float *x, const kv_t *kv, int64_t slot, float *work) noexcept nogil:
    cdef int64_t h
    cdef int type
    cdef uint8_t *block
    cdef const float *head
    for h in range(kv.n_heads):
        head = x + h * kv.d
        if kv.hadamard:
            memcpy(work, head, kv.d * sizeof(float))
            KERNELS.hadamard(work, kv.d)
            head = work
        block = block_of(kv, slot // SLOTS, h, &type)
        store_row(head, block, type, <int>(slot % SLOTS), kv.d)


cdef inline void store_row(const float *x, uint8_t *block, int type, int slot,
                           int64_t d) noexcept nogil:
    if type == C_F32:
        memcpy(block + slot * d * 4, x, d * 4)
    elif type == C_F16:
        KERNELS.to_f16(x, d, <uint16_t *>block + slot * d)
    else:
        KERNELS.quantize[type](x, slot, d, block)


cdef struct shift_t:
    kv_t keys  # of the first layer
    const rope_t *rope
    const int32_t *moved  # [n][4]: block, first slot, length, by how many positions
    const int32_t *layers  # NULL: all
    int64_t n


cdef class _Shift(Operation):
    cdef shift_t a


def shift(Pool pool, Rope rope, const int32_t[:, ::1] moved, const int32_t[::1] layers=None):
    """Rotate stored keys by a further angle, for another position. Quantized keys are quantized
    anew. ValueError for types by channel: all of a block would have to move.

    moved int32 [n, 4]  # IN block, first slot, length, positions to move by (negative: backwards)
    layers int32 [n_layers]  # IN whose keys are rotated; None: those of all layers
    """
    cdef Py_ssize_t i, n_layers = pool.n_layers if layers is None else layers.shape[0]
    pool.check_rope(rope)
    if moved.shape[1] != 4:
        raise ValueError(f"moved segments have 4 columns, not {moved.shape[1]}")
    if pool.type_k >= C_Q8_CH:
        raise ValueError("keys that are quantized by channel cannot be rotated in the cache")
    for i in range(moved.shape[0]):
        if (min(moved[i, 0], moved[i, 1], moved[i, 2]) < 0 or moved[i, 0] >= pool.n_blocks
                or moved[i, 1] + moved[i, 2] > SLOTS):
            raise ValueError(
                f"slots {moved[i, 1]} to {moved[i, 1] + moved[i, 2]} of block {moved[i, 0]}, but "
                f"the pool has {pool.n_blocks} blocks of {SLOTS}"
            )
        if abs(moved[i, 3]) >= rope.n_positions:
            raise ValueError(f"a shift by {moved[i, 3]} positions, but the RoPE table has "
                             f"{rope.n_positions}")
    for i in range(0 if layers is None else n_layers):
        if not 0 <= layers[i] < pool.n_layers:
            raise ValueError(f"layer {layers[i]}, expected 0 to {pool.n_layers - 1}")
    cdef _Shift operation = _Shift()
    cdef shift_t *a = &operation.a
    a.keys, a.rope, a.n = pool.keys(0), &rope.table, moved.shape[0]
    if a.n:
        a.moved = &moved[0, 0]
    a.layers = NULL
    if layers is not None and n_layers:
        a.layers = &layers[0]
    operation.n_work = 2 * a.keys.d  # a key, and the key rotated back
    operation.bind(shift_task, a, n_layers * a.n, (pool, rope, moved, layers))
    return operation


cdef void shift_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One segment in one layer."""
    cdef const shift_t *a = <const shift_t *>args
    cdef const int32_t *seg = a.moved + task % a.n * 4
    cdef int64_t d = a.keys.d, head, i, layer = task // a.n, index
    cdef const float *row = a.rope.rows + abs(seg[3]) * d
    cdef uint8_t *block
    cdef float *key
    cdef int type, slot
    if a.layers != NULL:
        layer = a.layers[layer]
    index = layer * a.keys.n_blocks + seg[0]
    for head in range(a.keys.n_heads):
        block = block_of(&a.keys, index, head, &type)
        for i in range(seg[2]):
            slot = <int>(seg[1] + i)
            if type == C_F32:
                memcpy(work, block + slot * d * 4, d * sizeof(float))
            elif type == C_F16:
                KERNELS.to_f32(<uint16_t *>block + slot * d, d, work)
            else:
                KERNELS.dequantize[type](block, slot, 1, d, work)
            if a.keys.hadamard:
                KERNELS.hadamard(work, d)
            key = work
            if seg[3] >= 0:
                KERNELS.rope_head(work, row, d // 2, 1)
            else:
                key = work + d
                KERNELS.rotate_back(work, 1, row, d // 2, key)
            if a.keys.hadamard:
                KERNELS.hadamard(key, d)
            store_row(key, block, type, slot, d)


cdef struct seal_t:
    kv_t keys, values  # of the first layer
    const int32_t *blocks
    int64_t n


cdef class _Seal(Operation):
    cdef seal_t a


cdef int check_open(Pool pool, int64_t block) except -1:
    if not 0 <= block < pool.n_blocks or pool.open_at is None or pool.open_at[block] < 0:
        raise ValueError(f"block {block} is not open")
    return 0


def seal(Pool pool, const int32_t[::1] blocks):
    """Quantize the keys and values of open blocks, in all layers, where their type is by channel.

    blocks int32 [n]  # IN; whoever set `open_at` gives up their places afterwards
    """
    cdef Py_ssize_t i
    for i in range(blocks.shape[0]):
        check_open(pool, blocks[i])
    cdef _Seal operation = _Seal()
    cdef seal_t *a = &operation.a
    a.keys, a.values, a.n = pool.keys(0), pool.values(0), blocks.shape[0]
    if a.n:
        a.blocks = &blocks[0]
    operation.n_work = SLOTS * max(a.keys.d, a.values.d)  # a block of one head as float
    operation.bind(seal_task, a, pool.n_layers * a.n, (pool, blocks))
    return operation


cdef void seal_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One block in one layer."""
    cdef const seal_t *a = <const seal_t *>args
    cdef int64_t head
    for head in range(a.keys.n_heads):
        seal_head(&a.keys, a.blocks[task % a.n], task // a.n, head, work)
        seal_head(&a.values, a.blocks[task % a.n], task // a.n, head, work)


cdef void seal_head(const kv_t *kv, int64_t block, int64_t layer, int64_t head,
                    float *work) noexcept nogil:
    """`layer` counts from that of `kv`."""
    cdef int type
    if kv.open_at == NULL:
        return
    KERNELS.to_f32(<uint16_t *>block_of(kv, block, layer * kv.n_heads + head, &type),
                   SLOTS * kv.d, work)
    KERNELS.quantize[kv.type](
        work, 0, kv.d,
        kv.base + ((layer * kv.n_blocks + block) * kv.n_heads + head) * kv.block_bytes,
    )


def seal_filled(Pool pool, Py_ssize_t layer):
    """Quantize, in one layer, the blocks that `Pool.fill` was last called with."""
    pool.check_layer(layer)
    cdef _Seal operation = _Seal()
    cdef seal_t *a = &operation.a
    a.keys, a.values, a.n = pool.keys(layer), pool.values(layer), 0
    a.blocks = &pool.filled[0] if pool.n_blocks else NULL
    operation.n_work = SLOTS * max(a.keys.d, a.values.d)
    operation.bind(seal_filled_task, a, 0, (pool,))
    operation.n_tasks = &pool.n_seal_tasks
    return operation


cdef void seal_filled_task(const void *args, int64_t task, float *work) noexcept nogil:
    """One head of a block."""
    cdef const seal_t *a = <const seal_t *>args
    cdef int64_t block = a.blocks[task // a.keys.n_heads], head = task % a.keys.n_heads
    seal_head(&a.keys, block, 0, head, work)
    seal_head(&a.values, block, 0, head, work)
