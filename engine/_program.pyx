"""Programs: a forward pass as a list of steps, run by all threads in one parallel region.

A kernel does not compute when it is called: it returns a step, cut into tasks by the size of the
problem alone. A program is a list of phases, each of steps that do not depend on each other. It is
recorded once and run many times, so Python costs nothing between two kernels.

Within a run nobody waits for a thread, only for work: the tasks of a phase are taken from
counters, another one counts those that are done, and a phase may begin when all of the one before
are. A thread that the system has put aside holds up the others only if it is in the midst of a
task; an OpenMP barrier would have all wait for it, several hundred times a token.

Each thread has a share of a phase's tasks, neighbours of each other, and takes those first; when
they are gone it helps with the shares of others. So it reads memory in one run, the same one for
every token: with two threads that take tasks in turns, each skips what the other reads, and the
memory delivers less (30 GB/s instead of 33 to 50 here).
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
    /* Whoever sees the count also sees what the tasks have written: release here, acquire there. */
    static inline void mark_done(int64_t *counter) {
        __atomic_fetch_add(counter, 1, __ATOMIC_RELEASE);
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
    void wait_until(const int64_t *, int64_t) noexcept nogil

cdef enum:
    LINE = 8  # int64 of a cache line, so that no two counters share one

cdef struct step_t:
    task_fn do_task
    const void *args
    const int64_t *count  # where the step keeps its number of tasks
    int64_t n_tasks       # in this run

cdef struct phase_t:
    int64_t first_step, last_step
    int64_t n_tasks  # in this run


cdef class Operation:
    """Something to compute, cut into tasks that any thread may do in any order."""

    cdef void bind(self, task_fn do_task, const void *args, int64_t n_tasks,
                   object keep) noexcept:
        self.do_task, self.args, self.keep = do_task, args, keep
        self.fixed_n_tasks = n_tasks
        self.n_tasks = &self.fixed_n_tasks


cdef class Program:
    """Phases of steps. `then` adds a phase, `run` does them in order."""

    cdef list steps    # kept alive here
    cdef step_t *table
    cdef phase_t *phases
    cdef int64_t *counters  # [n_phases][1 + n_threads lines]: tasks done, next of each share
    cdef int n_counted      # threads that there are counters for
    cdef Py_ssize_t n_steps
    cdef readonly Py_ssize_t n_phases
    cdef float[::1] work
    cdef int64_t n_work

    def __init__(self):
        self.steps = []
        self.work = np.zeros(1, np.float32)

    def __dealloc__(self):
        free(self.table)
        free(self.phases)
        free(self.counters)

    def then(self, *steps):
        """Add a phase: steps that need what stands before, and nothing of each other.

        Returns the program.
        """
        cdef Operation step
        for step in steps:
            self.table = <step_t *>grown(self.table, (self.n_steps + 1) * sizeof(step_t))
            self.table[self.n_steps].do_task = step.do_task
            self.table[self.n_steps].args = step.args
            self.table[self.n_steps].count = step.n_tasks
            self.n_work = max(self.n_work, step.n_work)
            self.n_steps += 1
            self.steps.append(step)
        n = self.n_phases + 1
        self.phases = <phase_t *>grown(self.phases, n * sizeof(phase_t))
        self.n_counted = 0
        self.phases[self.n_phases].first_step = self.n_steps - len(steps)
        self.phases[self.n_phases].last_step = self.n_steps
        self.n_phases = n
        return self

    def run(self, int n_threads, Py_ssize_t first=0, Py_ssize_t last=-1):
        """Do the phases from `first` to before `last` (-1: to the end) with `n_threads` threads."""
        cdef Py_ssize_t n = self.n_phases if last == -1 else last, i, j
        cdef int64_t most = 0
        if n_threads < 1 or not 0 <= first <= n <= self.n_phases:
            raise ValueError(f"phases {first} to {last} of {self.n_phases}, {n_threads} threads")
        for i in range(first, n):
            self.phases[i].n_tasks = 0
            for j in range(self.phases[i].first_step, self.phases[i].last_step):
                self.table[j].n_tasks = self.table[j].count[0]
                self.phases[i].n_tasks += self.table[j].n_tasks
            most = max(most, self.phases[i].n_tasks)
        if self.work.shape[0] < self.n_work * n_threads:
            self.work = np.zeros(self.n_work * n_threads, np.float32)
        cdef float *work = &self.work[0]
        if n_threads == 1 or most <= 1:
            with nogil:
                work_alone(self.table, self.phases, first, n, work)
        else:
            self._count_from_start(n_threads, first, n)
            with nogil, parallel(num_threads=n_threads):
                work_together(self.table, self.phases, self.counters, first, n, threadid(),
                              n_threads, work + threadid() * self.n_work)

    cdef int _count_from_start(self, int n_threads, Py_ssize_t first, Py_ssize_t last) except -1:
        """Nothing is done yet, and each thread's next task is the first of its share."""
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
            counter[0] = 0
            for thread in range(n_threads):
                counter[(1 + thread) * LINE] = share(self.phases[i].n_tasks, thread, n_threads)


cdef void *grown(void *memory, size_t n_bytes) except NULL:
    """realloc that raises"""
    cdef void *more = realloc(memory, n_bytes)
    if more == NULL:
        raise MemoryError("no memory for the steps of a program")
    return more


cdef inline int64_t share(int64_t n_tasks, int thread, int n_threads) noexcept nogil:
    """Where the share of a thread begins; it ends where the next one's does."""
    return (n_tasks * thread + n_threads - 1) // n_threads


cdef void work_together(const step_t *steps, const phase_t *phases, int64_t *counters,
                        Py_ssize_t first, Py_ssize_t last, int thread, int n_threads,
                        float *work) noexcept nogil:
    """What each thread does: take tasks while there are any, then wait for the phase to be done."""
    cdef Py_ssize_t i
    cdef int helped, whose
    cdef int64_t task, end
    cdef int64_t *done
    cdef int64_t *next_task
    for i in range(first, last):
        done = counters + i * (1 + n_threads) * LINE
        for helped in range(n_threads):
            whose = (thread + helped) % n_threads
            next_task = done + (1 + whose) * LINE
            end = share(phases[i].n_tasks, whose + 1, n_threads)
            task = take(next_task)
            while task < end:
                do_task(steps + phases[i].first_step, task, work)
                mark_done(done)
                task = take(next_task)
        wait_until(done, phases[i].n_tasks)


cdef inline void do_task(const step_t *step, int64_t task, float *work) noexcept nogil:
    """Task number `task` of a phase, whose first step is `step`."""
    while task >= step.n_tasks:
        task -= step.n_tasks
        step += 1
    step.do_task(step.args, task, work)


cdef void work_alone(const step_t *steps, const phase_t *phases, Py_ssize_t first, Py_ssize_t last,
                     float *work) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef int64_t task
    for i in range(first, last):
        for j in range(phases[i].first_step, phases[i].last_step):
            for task in range(steps[j].n_tasks):
                steps[j].do_task(steps[j].args, task, work)


def run(*steps, int n_threads=1):
    """Do these steps, which do not depend on each other, now."""
    Program().then(*steps).run(n_threads)
