"""What the server allows its clients, and what it keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import final

__all__ = ("Settings",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits and sizes; every one must be above zero.

    Attributes:
      max_head_size: bytes of a request line and its header fields; 431 beyond. 64 KiB by default,
        the size of one receive.
      max_fields: header fields of a request; 431 beyond. 128 by default: browsers send about 20.
      max_body_size: bytes of a request body; 413 beyond. Bodies are streamed, so this protects
        time and not memory.
      head_timeout: seconds from a request's first byte to the end of its head, however the bytes
        trickle in; 408 then. Also how long a new connection may stay silent.
      body_timeout: seconds that a body may make no progress; 408 then, if the answer has not begun.
      keep_alive_timeout: seconds a connection may rest between requests. 75 by default, as nginx.
      small_file_size: bytes up to which a file is kept in memory.
      cache_size: bytes that the files in memory take altogether. A file counts three times, since
        it is kept as the bytes of two answers, too, and with about 2 KiB beside.
      check_interval: seconds for which a cached file is believed before it is looked at again.
    """

    max_head_size: int = 65536
    max_fields: int = 128
    max_body_size: int = 64 * 1024 * 1024
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    keep_alive_timeout: float = 75.0
    small_file_size: int = 65536
    cache_size: int = 64 * 1024 * 1024
    check_interval: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Settings.{field.name} must be a number, got {value!r}")
            if not value > 0:
                raise ValueError(f"Settings.{field.name} must be above zero, got {value!r}")
