"""Operations of a program: see _program.pyx."""

from libc.stdint cimport int64_t

# Does task number `task` of an operation. `work` is the calling thread's own memory.
ctypedef void (*task_fn)(const void *args, int64_t task, float *work) noexcept nogil


cdef class Operation:
    cdef task_fn do_task
    cdef const void *args        # lives in the operation
    cdef const int64_t *n_tasks  # looked up when a run begins
    cdef int64_t fixed_n_tasks
    cdef const int64_t *n_units  # not NULL: it has n_tasks for each unit, counted by earlier phases
    cdef int64_t n_work          # floats of working memory of a task
    cdef object keep             # what `args` points to

    cdef void bind(self, task_fn do_task, const void *args, int64_t n_tasks,
                   object keep) noexcept
