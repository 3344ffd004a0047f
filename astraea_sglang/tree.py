"""What retention knows of KV memory, and what it asks of the radix tree."""

from typing import Any, NamedTuple, Protocol

from astraea_sglang.program import Program


class Memory(NamedTuple):
    """The device's KV pool: tokens in all, locked by running requests, and wanted by waiting ones."""

    pool: int = 0
    running: int = 0
    waiting: int = 0


class Tree(Protocol):
    """What is asked of the radix tree. A node is where a program's path ends; a stale one is never used, only compared.

    All lengths are tokens from the root, or of the path.
    """

    @property
    def copies(self) -> bool:
        """Is there a host pool to swap to?"""
        ...

    def pin(self, node: Any, most: int) -> tuple[Any, int]:
        """Lock the path to `node`, or the part of it that takes `most` tokens: the lock (or None), and its tokens."""
        ...

    def unpin(self, pin: Any) -> None:
        """Unlock what `pin` locked."""
        ...

    def free(self, program: Program, node: Any, kept: int) -> int:
        """Free the program's path from its end, up to `kept` tokens or the first node not its own: tokens freed."""
        ...

    def demote(self, program: Program, node: Any, kept: int) -> int:
        """Begin to move the same part of the path to the host: tokens to be moved."""
        ...

    def load(self, node: Any) -> int:
        """Begin to move the path back to the device: tokens to be moved."""
        ...

    def wanted(self, program: Program) -> None:
        """When the program will want its KV again, `program.back`, has changed."""
        ...
