"""Work ahead in several threads, a bounded number of pieces, and give the results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Given = TypeVar("Given")


def worked_ahead(do: Callable[[Given], T], pieces: Iterable[Given]) -> Iterator[T]:
    """Yield what a function returns of each piece, in order; at most three pieces per thread wait to be taken.

    Args:
        do: What is done with a piece, in a thread of its own.
        pieces: The pieces, which are made as they are needed.
    """
    threads = os.cpu_count() or 1
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for piece in pieces:
            ahead.append(pool.submit(do, piece))
            if len(ahead) > 3 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
