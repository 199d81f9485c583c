"""Answers that are ready: found by what the client asked for, without asking the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .requests import Request
    from .responses import Prepared

__all__ = ("ReadyAnswers",)

# Targets that are kept; past this number all are forgotten, and come back one by one. So many
# different query strings are somebody's attempt to fill the memory. The same for whole heads.
MAX_READY: Final = 1024

# A longer target is not kept: nothing links to it, and it would count for nothing.
MAX_READY_TARGET: Final = 1024

# A longer head is not kept: one with a browser's cookies, say, which comes from one client only.
MAX_HEAD: Final = 1024


@final
class ReadyAnswers:
    """Whole answers to plain GETs, by the request's target and by the whole of its head.

    A client that stays asks in the same words again and again, and the same bytes are the same
    request: then not even parsing is needed.

    Attributes:
      find: returns the answer for a target, or None. Look at its ``fresh_until``.
      recall: returns the request that came in these very bytes, and its answer, or None.
    """

    __slots__ = ("_by_head", "_by_target", "_seen", "find", "recall")

    def __init__(self) -> None:
        self._by_target: dict[bytes, Prepared] = {}
        self._by_head: dict[bytes, tuple[Request, Prepared]] = {}
        # The hashes of heads that came once: most never come again, and are not worth more.
        self._seen: set[int] = set()
        # Asked for every request, so a dictionary's own method.
        self.find: Callable[[bytes], Prepared | None] = self._by_target.get
        self.recall: Callable[[bytes], tuple[Request, Prepared] | None] = self._by_head.get

    def keep(self, target: bytes, prepared: Prepared) -> None:
        """Keep an answer for ``target``."""
        if len(target) > MAX_READY_TARGET:
            return
        if len(self._by_target) >= MAX_READY:
            self._by_target.clear()
        self._by_target[target] = prepared

    def remember(self, head: bytes, request: Request, prepared: Prepared) -> None:
        """Keep an answer for ``head``, which is ``request`` and nothing else, if it came before."""
        # What follows the empty line, if only the half of another, is no part of the request.
        if len(head) > MAX_HEAD or not head.endswith(b"\r\n\r\n"):
            return
        seen = self._seen
        # That two have one hash costs a place and no more.
        if hash(head) not in seen:
            if len(seen) >= MAX_READY:
                seen.clear()
            seen.add(hash(head))
            return
        if len(self._by_head) >= MAX_READY:
            self._by_head.clear()
        self._by_head[head] = request, prepared

    def forget(self, prepared: Prepared) -> None:
        """Let go of an answer, wherever it is kept."""
        for target in [one for one, kept in self._by_target.items() if kept is prepared]:
            del self._by_target[target]
        for head in [one for one, kept in self._by_head.items() if kept[1] is prepared]:
            del self._by_head[head]
