"""Which kind of core the matmul tiles of a weight type are compiled for.

An instruction set may have tiles for several kinds of cores (simd/tuning.h), with the same bits.
Those of the processor's maker are in use until `use` chooses others, for few columns or for many.
`_kernels.use_isa` and `use_core` undo all choices.
"""

from lariat._kernels cimport FEW_COLUMNS, GROUP_ROWS, Matrix, fill, kernels_t, table

from lariat import _kernels


def is_few(int n_columns):
    """Whether so many columns are few."""
    return n_columns <= FEW_COLUMNS


def group_rows():
    """Rows of an interleaved matrix that stand together: it can be cut between groups of them."""
    return GROUP_ROWS


def cores():
    """Kinds of cores that the instruction set in use has tiles for."""
    return tuple(core for isa, core in _kernels.variants() if isa == _kernels.isa())


def use(Matrix w, bint few, str core):
    """Multiply matrices of the type of `w` with the tiles for `core`, one of `cores()`, by few
    columns or by many."""
    cdef kernels_t of_core
    fill(_kernels.isa(), core, &of_core)
    if few:
        table().matmul_few[w.type] = of_core.matmul_few[w.type]
    else:
        table().matmul[w.type] = of_core.matmul[w.type]


def core_of(Matrix w, bint few):
    """The first of `cores()` whose tiles matrices of the type of `w` are multiplied with."""
    cdef kernels_t of_core
    for core in cores():
        fill(_kernels.isa(), core, &of_core)
        if few and table().matmul_few[w.type] == of_core.matmul_few[w.type]:
            return core
        if not few and table().matmul[w.type] == of_core.matmul[w.type]:
            return core
    raise AssertionError("the tiles in use are those of no kind of core")
