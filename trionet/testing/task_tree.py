"""A run's tasks as a tree: who started whom, and what each is waiting for."""

from __future__ import annotations

import linecache
import os
import sysconfig
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

__all__ = ("children_of", "task_tree", "walk_tasks")
# Where trio waits at the end of a nursery's block; a name it does not promise, told differently if
# it changes.
_NURSERY_EXIT: Final = "_nested_child_finished"


def _folder(path: str) -> str:
    return os.path.join(os.path.abspath(path), "")


# What a task waits *in* is told by the name of the first function in here that it called; *where*
# it does, by the line of the program that called it.
_BELOW: Final = (
    _folder(os.path.dirname(trio.__file__)),
    _folder(os.path.dirname(os.path.dirname(__file__))),
)
# Other people's libraries: their lines are shown only where a task has none of the program's own.
_INSTALLED: Final = tuple(
    _folder(path) for name, path in sysconfig.get_paths().items() if name.endswith("lib")
)


def children_of(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    """Return the tasks in the nurseries of ``task``, in no order: trio keeps them in sets."""
    return [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def walk_tasks(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Go through ``root`` and all tasks below it."""
    waiting = [root]
    while waiting:
        task = waiting.pop()
        yield task
        waiting += children_of(task)


def task_tree(
    root: trio.lowlevel.Task, name: str, *, order: Callable[[trio.lowlevel.Task], int]
) -> str:
    """Draw ``root`` and all tasks below it, one a line.

    Args:
      name: what to call ``root``.
      order: what to sort siblings by.
    """
    lines: list[str] = []

    def draw(task: trio.lowlevel.Task, head: str, indent: str, name: str) -> None:
        lines.append(head + _describe(task, name))
        children = sorted(children_of(task), key=order)
        for child in children:
            last = child is children[-1]
            draw(
                child,
                indent + ("└─ " if last else "├─ "),
                indent + ("   " if last else "│  "),
                _short(child.name),
            )

    draw(root, "", "", name)
    return "\n".join(lines)


def _describe(task: trio.lowlevel.Task, name: str) -> str:
    frames = [(frame.f_code, number) for frame, number in task.iter_await_frames()]
    # The last line of the program, or else of whatever library called us.
    outside = [i for i, (code, _) in enumerate(frames) if not code.co_filename.startswith(_BELOW)]
    own = [i for i in outside if not frames[i][0].co_filename.startswith(_INSTALLED)]
    last = (own or outside or [-1])[-1]
    below = [code for code, _ in frames[last + 1 :]]
    called = next((code for code in below if _says_something(code)), None)
    parts = [_place(*frames[last]) if last >= 0 else ""]
    if any(code.co_name == _NURSERY_EXIT for code in below):
        parts.insert(0, "waits for the tasks of its nursery")
    elif called is not None:
        parts.insert(0, f"waits in {_short(called.co_qualname)}")
    said = ", ".join(part for part in parts if part)
    return f"{name}: {said or 'has not run yet'}"


def _says_something(code: CodeType) -> bool:
    # "wrapper" is what trio's socket methods are called inside.
    return not code.co_name.startswith("_") and code.co_name != "wrapper"


def _place(code: CodeType, number: int) -> str:
    text = linecache.getline(code.co_filename, number).strip()
    return f"{os.path.basename(code.co_filename)}:{number}: {text}"


def _short(name: str) -> str:
    return name.rpartition("<locals>.")[2]
