"""A lock that a `with` statement takes and gives back in one piece.

Python may raise an exception of somebody else between any two steps of Python code: Ctrl-C in a
notebook, an alarm, a timeout of a test. A lock written in Python can so be taken and never given
back. Code compiled by Cython is one step, so here nothing comes in between.
"""

import threading


cdef class Exclusive:
    """Lets one Python thread at a time into a `with` block.

    A thread that leaves and comes back at once stands behind those that wait: whoever comes takes
    its turn first, which the next to enter keeps until it is in.

    check  is called before the lock is waited for, and again when it is held; it raises where
           nobody may go in. Exceptions leave the lock free.
    """

    cdef object lock, turn, check, holder, next
    cdef public bint failed  # an exception has left the block; reset by who looks into it

    def __init__(self, check):
        self.lock, self.turn, self.check = threading.Lock(), threading.Lock(), check
        self.holder, self.next, self.failed = None, None, False

    @property
    def is_held(self):
        """Whether a thread is in the block, or about to be."""
        return self.lock.locked() or self.turn.locked()

    @property
    def is_wanted(self):
        """Whether a thread waits, for the one in the block to ask."""
        return self.turn.locked()

    @property
    def is_mine(self):
        """Whether the calling thread is in the block."""
        return self.holder == threading.get_ident()

    def __enter__(self):
        """RuntimeError from within the block; errors of `check`."""
        me = threading.get_ident()
        self.check()
        if self.holder == me:
            raise RuntimeError("an LLM cannot be used from within its own callbacks")
        if self.next == me:  # a signal's handler has interrupted the wait of this very thread
            self.lock.acquire()
        else:
            self.turn.acquire()
            self.next = me
            try:
                self.lock.acquire()
            finally:
                self.next = None
                self.turn.release()
        try:
            self.check()
            self.holder = me
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, type, *_):
        if type is not None:
            self.failed = True
        self.holder = None
        self.lock.release()
