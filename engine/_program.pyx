"""Programs: a forward pass as a list of operations, run by all threads in one parallel region.

A kernel that is called computes nothing: it returns an operation, cut into tasks by the size of the
problem alone. A program is a list of phases; a phase holds operations that do not depend on each
other. It is recorded once and run many times, so there is no Python between two kernels. The number
of tasks is looked up when a run begins. If an earlier phase decides it (which experts get tokens),
it is looked up when the phase begins.

Threads wait for work, never for each other. The tasks of a phase are taken from counters, another
counter says how many are done, and a phase begins when all tasks of the one before are. A thread
that the system has put aside holds up the others only if it is in the midst of a task. At an OpenMP
barrier all would wait for it, several hundred times a token.

Each thread has a share of a phase's tasks, neighbours in memory, and takes those first. Then it
helps with the shares of others. So it reads memory in one run, and the same memory for every token.
If two threads took tasks in turns, each would skip what the other reads, and the memory would
deliver less (measured: 30 GB/s instead of 33 to 50).

A run may be stopped between two phases. Threads need not agree where: those that have left had
finished their tasks, and those that have not take the tasks that are left.
"""

import numpy as np

from cython.parallel cimport parallel, threadid
from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc

cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    #if defined(__x86_64__) || defined(__i386__)
    #define PAUSE() __builtin_ia32_pause()
    #else
    #define PAUSE() ((void)0)
    #endif
    enum { SPINS = 4096 }; /* some 50 microseconds; then the processor goes to whoever needs it */

    static inline int64_t take(int64_t *counter) {
        return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    }
    /* A thread that sees the count also sees what the tasks have written: release here, acquire in
     * wait_until. */
    static inline void mark_done(int64_t *counter) {
        __atomic_fetch_add(counter, 1, __ATOMIC_RELEASE);
    }
    /* The number of tasks of a phase, which the first thread to arrive has counted. One that comes
     * so late that others are phases ahead, and may have changed the counts, gets it too. */
    static inline int64_t agree_on(int64_t *agreed, int64_t counted) {
        int64_t none = -1;
        return __atomic_compare_exchange_n(agreed, &none, counted, 0, __ATOMIC_ACQ_REL,
                                           __ATOMIC_ACQUIRE) ? counted : none;
    }
    static inline void wait_until(const int64_t *counter, int64_t n) {
        for (int spins = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) != n;) {
            if (++spins < SPINS)
                PAUSE();
            else
                sched_yield();
        }
    }
    """
    int64_t take(int64_t *) noexcept nogil
    void mark_done(int64_t *) noexcept nogil
    int64_t agree_on(int64_t *, int64_t) noexcept nogil
    void wait_until(const int64_t *, int64_t) noexcept nogil

cdef enum:
    LINE = 8           # int64 of a cache line, so that no two counters share one
    GUARD_FLOATS = 16  # behind each thread's working memory: nothing writes there, tests look

cdef struct operation_t:
    task_fn do_task
    const void *args
    const int64_t *count    # where the operation keeps its number of tasks
    int64_t n_tasks         # in this run, or for each unit
    const int64_t *n_units  # as in Operation

cdef struct phase_t:
    int64_t first, last  # operations
    int64_t n_tasks      # in this run; -1 if some are counted when the phase begins


cdef int never = 0  # of runs that nobody stops


cdef class Stop:
    """Ends runs between two phases, once all whom they are for have given up.

    Between `begin` and `end`, a run is for `requests`, objects with an attribute `closed`. Whoever
    closes one calls `look`. Each method is one step of Python, so none needs a lock.
    """

    cdef object requests
    cdef volatile int flag

    def begin(self, requests):
        """From now on runs are for these."""
        self.requests, self.flag = requests, 0
        self.look()

    def look(self):
        """Stop if all are closed."""
        if self.requests is not None:
            for request in self.requests:
                if not request.closed:
                    return
            self.flag = 1

    def end(self):
        """From now on runs are for nobody who could give up. Returns whether they were stopped."""
        cdef bint stopped = self.flag
        self.requests, self.flag = None, 0
        return stopped

    @property
    def is_set(self):
        """Whether runs are stopped now."""
        return self.flag != 0


cdef class Operation:
    """Something to compute, cut into tasks that any thread may do in any order."""

    cdef void bind(self, task_fn do_task, const void *args, int64_t n_tasks,
                   object keep) noexcept:
        self.do_task, self.args, self.keep = do_task, args, keep
        self.fixed_n_tasks = n_tasks
        self.n_tasks = &self.fixed_n_tasks


cdef class Program:
    """Phases of operations. `then` adds a phase, `run` does them in order."""

    cdef list operations    # kept alive here
    cdef operation_t *table
    cdef phase_t *phases
    cdef int64_t *counters  # [n_phases][1 + n_threads lines]: tasks done, tasks; taken of shares
    cdef int n_counted      # threads that there are counters for
    cdef Py_ssize_t n_operations
    cdef readonly Py_ssize_t n_phases
    cdef readonly int64_t n_work  # floats of working memory that a task may use
    cdef float[::1] work          # [n_threads][n_work + GUARD_FLOATS]

    def __init__(self):
        self.operations = []
        self.work = np.zeros(1, np.float32)

    def __dealloc__(self):
        free(self.table)
        free(self.phases)
        free(self.counters)

    def then(self, *operations):
        """Add a phase: operations that need results of the phases before it, and none of each
        other. Returns the program."""
        cdef Operation operation
        for operation in operations:
            self.table = <operation_t *>grown(
                self.table, (self.n_operations + 1) * sizeof(operation_t)
            )
            self.table[self.n_operations].do_task = operation.do_task
            self.table[self.n_operations].args = operation.args
            self.table[self.n_operations].count = operation.n_tasks
            self.table[self.n_operations].n_units = operation.n_units
            self.n_work = max(self.n_work, operation.n_work)
            self.n_operations += 1
            self.operations.append(operation)
        n = self.n_phases + 1
        self.phases = <phase_t *>grown(self.phases, n * sizeof(phase_t))
        self.n_counted = 0
        self.phases[self.n_phases].first = self.n_operations - len(operations)
        self.phases[self.n_phases].last = self.n_operations
        self.n_phases = n
        return self

    def run(self, int n_threads, Py_ssize_t first=0, Py_ssize_t last=-1, Stop stop=None):
        """Do the phases from `first` to before `last` (-1: to the end) with `n_threads` threads.

        With `stop`, the phases behind the one in which it is set may be left out.
        """
        cdef const volatile int *flag = &never if stop is None else &stop.flag
        cdef Py_ssize_t n = self.n_phases if last == -1 else last, i, j
        cdef int n_counted_later
        cdef int64_t max_tasks = 0, n_tasks, stride = self.n_work + GUARD_FLOATS
        if n_threads < 1 or not 0 <= first <= n <= self.n_phases:
            raise ValueError(f"phases {first} to {last} of {self.n_phases}, {n_threads} threads")
        for i in range(first, n):
            n_tasks, n_counted_later = 0, 0
            for j in range(self.phases[i].first, self.phases[i].last):
                self.table[j].n_tasks = self.table[j].count[0]
                n_tasks += self.table[j].n_tasks
                n_counted_later += self.table[j].n_units != NULL
            self.phases[i].n_tasks = -1 if n_counted_later else n_tasks
            max_tasks = max(max_tasks, n_tasks)
        if self.work.shape[0] < n_threads * stride:
            self.work = np.zeros(n_threads * stride, np.float32)
        cdef float *work = &self.work[0]
        if n_threads == 1 or max_tasks <= 1:
            with nogil:
                work_alone(self.table, self.phases, first, n, flag, work)
        else:
            self._count_from_start(n_threads, first, n)
            with nogil, parallel(num_threads=n_threads):
                work_together(self.table, self.phases, self.counters, first, n, flag, threadid(),
                              n_threads, work + threadid() * stride)

    def work_areas(self, int n_threads):
        """The working memory of `n_threads` threads, float32 [n_threads, n_work + guard], a view.

        A task uses the first n_work floats of its thread's row. For tests: they see by it whether a
        task reads what it has not written, or writes behind its area.
        """
        cdef Py_ssize_t stride = self.n_work + GUARD_FLOATS
        if self.work.shape[0] < n_threads * stride:
            self.work = np.zeros(n_threads * stride, np.float32)
        return np.asarray(self.work)[: n_threads * stride].reshape(n_threads, stride)

    cdef int _count_from_start(self, int n_threads, Py_ssize_t first, Py_ssize_t last) except -1:
        """No task is done or taken yet."""
        cdef Py_ssize_t i
        cdef int thread
        cdef int64_t *counter
        if self.n_counted != n_threads:
            self.counters = <int64_t *>grown(
                self.counters, self.n_phases * (1 + n_threads) * LINE * sizeof(int64_t)
            )
            self.n_counted = n_threads
        for i in range(first, last):
            counter = self.counters + i * (1 + n_threads) * LINE
            counter[0], counter[1] = 0, -1
            for thread in range(n_threads):
                counter[(1 + thread) * LINE] = 0


cdef void *grown(void *memory, size_t n_bytes) except NULL:
    """`memory` with room for n_bytes. MemoryError instead of NULL."""
    cdef void *more = realloc(memory, n_bytes)
    if more == NULL:
        raise MemoryError(f"no memory for a program: {n_bytes} bytes")
    return more


cdef inline int64_t share(int64_t n_tasks, int thread, int n_threads) noexcept nogil:
    """The first task of a thread's share, which ends where the next thread's begins."""
    return (n_tasks * thread + n_threads - 1) // n_threads


cdef inline int64_t tasks_of(const operation_t *operation) noexcept nogil:
    """Tasks of an operation, once the phases before it are done."""
    if operation.n_units == NULL:
        return operation.n_tasks
    return operation.n_tasks * operation.n_units[0]


cdef int64_t count_tasks(const operation_t *operations, const phase_t *phase) noexcept nogil:
    cdef int64_t i, n = 0
    for i in range(phase.first, phase.last):
        n += tasks_of(operations + i)
    return n


cdef void work_together(const operation_t *operations, const phase_t *phases, int64_t *counters,
                        Py_ssize_t first, Py_ssize_t last, const volatile int *stop, int thread,
                        int n_threads, float *work) noexcept nogil:
    """Each thread's loop: take tasks while there are any, then wait for the phase to be done."""
    cdef Py_ssize_t i
    cdef int helped, whose
    cdef int64_t n_tasks, first_task, n_share, task
    cdef int64_t *done
    cdef int64_t *next_task
    cdef const operation_t *operation
    for i in range(first, last):
        if stop[0]:
            return
        done = counters + i * (1 + n_threads) * LINE
        n_tasks = phases[i].n_tasks
        if n_tasks < 0:
            n_tasks = agree_on(done + 1, count_tasks(operations, phases + i))
        for helped in range(n_threads):
            whose = (thread + helped) % n_threads
            next_task = done + (1 + whose) * LINE
            first_task = share(n_tasks, whose, n_threads)
            n_share = share(n_tasks, whose + 1, n_threads) - first_task
            task = take(next_task)
            while task < n_share:
                task += first_task
                operation = operations + phases[i].first
                while task >= tasks_of(operation):  # tasks of a phase are counted through
                    task -= tasks_of(operation)
                    operation += 1
                operation.do_task(operation.args, task, work)
                mark_done(done)
                task = take(next_task)
        wait_until(done, n_tasks)


cdef void work_alone(const operation_t *operations, const phase_t *phases, Py_ssize_t first,
                     Py_ssize_t last, const volatile int *stop, float *work) noexcept nogil:
    """The same for one thread, which needs no counters."""
    cdef Py_ssize_t i, j
    cdef int64_t task
    for i in range(first, last):
        if stop[0]:
            return
        for j in range(phases[i].first, phases[i].last):
            for task in range(tasks_of(operations + j)):
                operations[j].do_task(operations[j].args, task, work)


def run(*operations, int n_threads=1):
    """Do these operations, which do not depend on each other, now."""
    Program().then(*operations).run(n_threads)
