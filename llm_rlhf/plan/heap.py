"""What glibc's allocator holds for a sequence of allocations: on a CPU, more than what is alive.

Blocks under a threshold lie in one heap, whose end only comes back when nothing lies there; between blocks that stay,
gaps are left that later ones may not fit into. The threshold follows the blocks that were given back, up to 32 MiB
(malloc(3), M_MMAP_THRESHOLD): larger ones are mapped by themselves and given back at once.
"""

import bisect

PAGE = 4096
FIRST, MOST = 128 * 1024, 32 * 2**20  # bytes of the threshold at the start, and at most
HEADER, ALIGNED = 16, 64  # bytes before a block, and what torch aligns blocks to


class Heap:
    """Follows one thread's allocations by glibc's rules: the best fit, joined with free neighbours when given back.

    What small objects of other libraries do between them is not followed.
    """

    def __init__(self) -> None:
        self.threshold = FIRST
        self.mapped = 0  # bytes of blocks mapped by themselves
        self.used = 0  # where the heap's last block ends
        self.resident = 0  # the heap's bytes that were written to, and not given back to the system
        self._by_size: list[tuple[int, int]] = []  # free blocks before the last one that is used: bytes, start
        self._starts: dict[int, int] = {}  # the same: start, bytes
        self._ends: dict[int, int] = {}  # the same: end, start

    @property
    def held(self) -> int:
        """Bytes that the process holds of memory."""
        return self.resident + self.mapped

    def take(self, size: int) -> tuple[int | None, int]:
        """Allocate; where the block starts in the heap, None where it is mapped by itself, and its bytes."""
        if size == 0:
            return None, 0
        size = -(-(size + HEADER) // ALIGNED) * ALIGNED
        place = bisect.bisect_left(self._by_size, (size, -1))
        if place < len(self._by_size):
            found, start = self._by_size[place]
            self._remove(start)
            if found > size:
                self._insert(start + size, found - size)
            return start, size
        if size >= self.threshold and self.used + size > self.resident:  # the heap's free end is too small for it
            size = -(-size // PAGE) * PAGE
            self.mapped += size
            return None, size
        start, self.used = self.used, self.used + size
        self.resident = max(self.resident, self.used)
        return start, size

    def give(self, block: tuple[int | None, int]) -> None:
        """Give a block back."""
        start, size = block
        if start is None:
            self.mapped -= size
            if self.threshold < size <= MOST:
                self.threshold = size
            return
        if start in self._ends:  # a free neighbour before it
            before = self._ends[start]
            start, size = before, size + self._starts[before]
            self._remove(before)
        if start + size in self._starts:
            after = start + size
            size += self._starts[after]
            self._remove(after)
        if start + size < self.used:
            self._insert(start, size)
            return
        self.used = start
        if self.resident - self.used > 2 * self.threshold:
            self.resident = self.used

    def _insert(self, start: int, size: int) -> None:
        bisect.insort(self._by_size, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _remove(self, start: int) -> None:
        size = self._starts.pop(start)
        del self._ends[start + size]
        del self._by_size[bisect.bisect_left(self._by_size, (size, start))]
