"""A prompt as it is compared with others: by digests of its beginnings, each made when asked for, once."""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

BLOCK = 64  # tokens of a prompt that are digested together
WIDTH = array("q").itemsize  # bytes of a token id


class Prompt:
    """A prompt in token ids. Only prompts of one `space` can have equal digests."""

    __slots__ = ("_at", "_digester", "_found", "_space", "blocks", "packed")

    def __init__(self, tokens: Sequence[int], space: str = "") -> None:
        self.packed = packed(tokens)
        self.blocks = len(tokens) // BLOCK
        self._space = space
        self._found: dict[int, bytes] = {}
        self._at, self._digester = 0, _begun(space)  # bytes digested so far

    def digest(self, blocks: int) -> bytes:
        """What stands for its first `blocks` blocks? Cheap if asked in ascending order."""
        if blocks not in self._found:
            end = blocks * BLOCK * WIDTH
            if end < self._at:
                self._at, self._digester = 0, _begun(self._space)
            self._digester.update(memoryview(self.packed)[self._at : end])
            self._at = end
            self._found[blocks] = self._digester.copy().digest()
        return self._found[blocks]


@lru_cache(1024)
def _digester(space: str) -> Any:
    return sha256(sha256(space.encode("utf-8", "surrogatepass")).digest())


def _begun(space: str) -> Any:
    return _digester(space).copy()


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids as bytes, WIDTH each."""
    ids = tokens if isinstance(tokens, array) and tokens.typecode == "q" else array("q", tokens)
    return ids.tobytes()
