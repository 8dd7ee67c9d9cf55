"""Of the C headers, for all kernel modules: constants, structs and the table of tiles."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t

cdef extern from "simd/table.h" nogil:
    enum: GROUP_ROWS, BLOCK, SLOTS, SCORE_ROWS
    enum: C_F16, C_F32, N_FLOAT_TYPES, C_Q8_0, C_Q4_0, C_Q8_CH, C_Q4_CH, N_CACHE_TYPES
    enum: MAX_HEAD_DIM, TILE_ROPED, TILE_RAW, TILE_RAW_8
    enum: N_WEIGHT_TYPES
    ctypedef struct activations_t:
        const float *x
        int8_t *q
        float *scale
        int32_t *neg8_sum
        int16_t *half_sum
        int64_t n_k
    ctypedef struct rope_t:
        const float *rows
        const float *step
        float gain
        int32_t group_n, group_window
    ctypedef void (*matmul_fn)(const void *, const activations_t *, int64_t, int, float *, int64_t,
                               int, int) noexcept nogil
    ctypedef void (*scores_fn)(const float *, int, const void *, int, int64_t, const rope_t *,
                               float *) noexcept nogil
    ctypedef void (*keys_fn)(const void *, int, int64_t, const float *, float *) noexcept nogil
    ctypedef void (*weighted_sum_fn)(const float *, int, const void *, int, int64_t,
                                     float *) noexcept nogil
    ctypedef void (*block_scores_fn)(const float *, const void *, int, int, int64_t,
                                     const rope_t *, float *) noexcept nogil
    ctypedef void (*block_weighted_sum_fn)(const float *, const void *, int, int, int64_t,
                                           float *) noexcept nogil
    ctypedef void (*dequantize_fn)(const void *, int, int, int64_t, float *) noexcept nogil
    ctypedef void (*quantize_fn)(const float *, int, int64_t, void *) noexcept nogil
    ctypedef struct kernels_t:
        matmul_fn matmul[N_WEIGHT_TYPES]
        matmul_fn matmul_few[N_WEIGHT_TYPES]
        matmul_fn matmul_many[N_WEIGHT_TYPES]
        void (*rms_norm)(const float *, const float *, float, int64_t, float *) noexcept nogil
        void (*quantize_column)(const float *, int64_t, int64_t, int8_t *, float *, int32_t *,
                                int16_t *) noexcept nogil
        void (*rope_head)(float *, const float *, int64_t, float) noexcept nogil
        void (*silu_mul)(float *, const float *, int64_t) noexcept nogil
        void (*gelu_mul)(float *, const float *, int64_t) noexcept nogil
        void (*soft_cap)(float *, int64_t, float) noexcept nogil
        void (*hadamard)(float *, int64_t) noexcept nogil
        void (*to_f16)(const float *, int64_t, uint16_t *) noexcept nogil
        void (*to_f32)(const uint16_t *, int64_t, float *) noexcept nogil
        void (*rotate_back)(const float *, int, const float *, int64_t, float *) noexcept nogil
        scores_fn scores[2][N_FLOAT_TYPES]
        keys_fn keys[N_FLOAT_TYPES]
        void (*tile_scores)(const float *, int, const float *, int64_t, int,
                            float *) noexcept nogil
        void (*softmax_block)(float *, int, int, int, int, float *, float *, float *,
                              int64_t) noexcept nogil
        weighted_sum_fn weighted_sum[N_FLOAT_TYPES]
        block_scores_fn block_scores[2][N_CACHE_TYPES]
        block_weighted_sum_fn block_weighted_sum[N_CACHE_TYPES]
        dequantize_fn dequantize[N_CACHE_TYPES]
        quantize_fn quantize[N_CACHE_TYPES]
    matmul_fn matmul_of(const kernels_t *, int, int64_t, int64_t, int64_t *) noexcept
    int64_t tile_width(const kernels_t *, int64_t) noexcept
    enum: FEW_COLUMNS
    int64_t cache_row_bytes(int, int64_t) noexcept
    int64_t cache_scale_bytes(int, int64_t) noexcept

cdef enum:
    # Floats that a task of a row-wise operation touches: enough to pay for taking it.
    TASK_FLOATS = 4096
    # Bytes of weights of one task: enough to pay for taking it, little enough to share out evenly.
    TASK_BYTES = 65536
    # With many columns the weights are read once and the products count: some 30 microseconds.
    TASK_PRODUCTS = 4194304

cdef class Matrix:
    cdef readonly str type_name
    cdef readonly Py_ssize_t n_rows, n_cols
    cdef readonly bint quantized
    cdef int type
    cdef int64_t group_bytes
    cdef const uint8_t[::1] packed
    cdef int hold(self, const uint8_t[::1] packed, str type_name, Py_ssize_t n_rows,
                  Py_ssize_t n_cols) except -1

cdef class Activations:
    cdef int8_t[::1] q
    cdef float[::1] scale
    cdef int32_t[::1] neg8_sum
    cdef int16_t[::1] half_sum
    cdef Py_ssize_t n_tokens, n_cols  # of the operation recorded last

cdef struct q8_t:  # where an operation puts quantized activations; q is NULL if it does not
    int64_t n_tokens, n_cols
    int8_t *q
    float *scale
    int32_t *neg8_sum
    int16_t *half_sum

cdef q8_t q8_of(Activations out, Py_ssize_t n_tokens, Py_ssize_t n_cols) except *
cdef void quantize_row(const q8_t *out, int64_t row, const float *x, int64_t first,
                       int64_t last) noexcept nogil

cdef class Rope:
    cdef rope_t table
    cdef readonly Py_ssize_t n_positions, head_dim
    cdef const float[:, ::1] rows, step

# The table in use, one for all modules: `use_isa` rewrites it.
cdef kernels_t *table() noexcept nogil
# That of an instruction set that this machine has, and of a kind of core
cdef int fill(str isa, str core, kernels_t *out) except -1
