"""What SQLite asks of a program that forks: that no connection is open meanwhile.

A child inherits what SQLite knows of the locks of its parent, but not the locks. With connections of its own it
would believe that it holds what nobody holds, and its parent would take the log away in which it writes. So a
fork waits for what is under way, and closes the rest, which is opened again when it is needed.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Has connections that are open while nobody uses them."""

    def before_fork(self) -> None:
        """Close them."""
        ...

    def after_fork(self) -> None:
        """Begin anew in a child, where the threads of its parent are not."""
        ...


class _Forks:
    """Counts the threads that are inside SQLite; while a process forks there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()
        self._is_forking = False
        self._all: WeakSet[Forkable] = WeakSet()

    def watch(self, item: Forkable) -> None:
        with self._changed:
            self._all.add(item)

    @contextmanager
    def kept_out(self) -> Generator[None]:
        thread = threading.get_ident()
        with self._changed:
            # A fork waits for who is inside, even if the garbage collector brings it here once more.
            self._changed.wait_for(lambda: not self._is_forking or thread in self._inside)
            self._inside[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= Counter([thread])
                self._changed.notify_all()

    def before(self) -> None:
        self._changed.acquire()  # until after the fork
        self._is_forking = True  # so that threads that come and go do not hold it up for ever
        self._changed.wait_for(lambda: not self._inside)
        for item in list(self._all):
            item.before_fork()

    def after_in_parent(self) -> None:
        self._is_forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_in_child(self) -> None:
        self._changed = threading.Condition()
        self._is_forking = False
        for item in list(self._all):
            item.after_fork()


_forks = _Forks()
os.register_at_fork(
    before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
)

watch = _forks.watch
"""Have something prepared for every fork, as long as it lives."""

no_fork = _forks.kept_out
"""Return a context in which a thread uses SQLite, and the process does not fork."""
