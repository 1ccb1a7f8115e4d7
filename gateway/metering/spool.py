"""Usage rows on disk until the store has them: what the process has recorded survives its death by any signal.

Rows are copied into a memory-mapped segment file, so that `append` makes no system call: pages that were written belong
to the kernel, which keeps them when the process is killed. Against a power cut `sync` flushes them, once a second.
Space is reserved when a segment is made (posix_fallocate): a full disk shows there, never at a write.

A segment is a sequence of records, closed by a length of zero:

    length u32 | CRC-32 of the payload u32 | payload: one `UsageEvent` in MessagePack

The length is written last, after the payload and the zero behind it: a record is there whole or not at all. A segment
whose rows have all been stored begins anew, so a healthy process writes over the same few pages. One that holds rows
of a process that is gone (its lock is free) is adopted, read and written to the store again; the rows' ids make that
harmless for those that the store has already.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gateway.metering.event import UsageEvent

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 8 * 1024 * 1024
_LEAST_BYTES: Final = 64 * 1024
_SEGMENTS: Final = 16
"""So many a spool has at least, as long as they are not too small: one row that waits keeps its whole segment."""
RETRY_S: Final = 2.0
"""How long no segment is asked for after the disk refused one."""
_HEADER: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")
_END: Final = bytes(_LENGTH.size)
_SUFFIX: Final = ".usage"
Flush = Callable[[int], None]
"""Brings what was written to a file descriptor to the disk, the pages of its maps included, without the interpreter's
lock: `mmap.flush` keeps that, and with it the event loop, for as long as the disk takes."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(UsageEvent).decode


class Segment:
    """One mapped file. `waiting` rows of it are in memory too, `spilled` ones on disk alone, neither stored yet."""

    __slots__ = ("_file", "_guard", "_holders", "_map", "dirty", "path", "size", "spilled", "used", "waiting")

    def __init__(self, path: Path, file: int, size: int) -> None:
        self.path = path
        self.size = size
        self.used = self.waiting = self.spilled = 0
        self.dirty = False
        self._file = file
        self._map = mmap.mmap(file, size)
        self._guard = threading.Lock()
        self._holders = 1

    def append(self, payload: bytes) -> bool:
        """Add a record; False when it does not fit."""
        begin = self.used + _HEADER.size
        end = begin + len(payload)
        if end + _LENGTH.size > self.size:
            return False
        held = self._map
        held[begin : end + _LENGTH.size] = payload + _END
        held[self.used + _LENGTH.size : begin] = _LENGTH.pack(zlib.crc32(payload))
        held[self.used : self.used + _LENGTH.size] = _LENGTH.pack(len(payload))
        self.used = end
        self.waiting += 1
        self.dirty = True
        return True

    def rewind(self) -> None:
        """Begin anew: every row of it is in the store."""
        self._map[: _LENGTH.size] = _END
        self.used = 0
        self.dirty = True

    def rows(self) -> Iterator[UsageEvent]:
        """Read the rows; what is torn or cannot be read by this version ends them and is logged."""
        at = 0
        while at + _HEADER.size <= self.size:
            length, checksum = _HEADER.unpack_from(self._map, at)
            if not length:
                return
            at += _HEADER.size
            payload = self._map[at : at + length]
            at += length
            if len(payload) != length or zlib.crc32(payload) != checksum:
                logger.error("a usage row on disk is damaged; it and those behind it are lost", extra=self._named())
                return
            try:
                yield _decode(payload)
            except msgspec.DecodeError as error:
                logger.error("a usage row on disk cannot be read", extra={**self._named(), "error": str(error)})

    def sync(self, flush: Flush) -> None:
        """Flush to the disk; blocks. From another thread than the rest, which goes on meanwhile."""
        if not self.dirty or not self._hold():
            return
        self.dirty = False
        try:
            flush(self._file)
        except BaseException:
            self.dirty = True
            raise
        finally:
            self._let_go()

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and of its lock; `remove` it when nothing in it is needed."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._map.close()
        self._let_go()

    def _hold(self) -> bool:
        """Keep the file open while it is flushed: its number must not become another file's meanwhile."""
        with self._guard:
            self._holders += self._holders > 0
            return self._holders > 0

    def _let_go(self) -> None:
        with self._guard:
            self._holders -= 1
            is_last = self._holders == 0
        if is_last:
            os.close(self._file)

    def _named(self) -> dict[str, str]:
        return {"segment": self.path.name}


class UsageSpool:
    """The segments of one process in `directory`; other processes' segments are adopted once these are gone.

    This process takes `max_bytes` at most, but a segment; beyond it, or on a full disk, `append` returns None and the
    row is in memory alone (`unspooled` counts them) until `put` finds room. `clock` is monotonic seconds. Only `sync`
    and `adopt` may wait for the disk: call them off the event loop.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        clock: Callable[[], float],
        segment_bytes: int = SEGMENT_BYTES,
        flush: Flush = os.fdatasync,
    ) -> None:
        self._directory = directory
        self._segment_bytes = max(min(segment_bytes, max_bytes // _SEGMENTS), _LEAST_BYTES)
        self._max_segments = max(1, max_bytes // self._segment_bytes)
        self._clock = clock
        self._flush = flush
        self._active: Segment | None = None
        self._sealed: list[Segment] = []
        self._refused_until = float("-inf")
        self.unspooled = 0
        self.recovered = 0

    @property
    def bytes_held(self) -> int:
        """How much disk is taken."""
        return sum(segment.size for segment in self._all())

    def append(self, row: UsageEvent) -> Segment | None:
        """Put a new row on disk; returns where it is, None when there is no room."""
        segment = self.put(row)
        self.unspooled += segment is None
        return segment

    def put(self, row: UsageEvent) -> Segment | None:
        """Put a row on disk that had no room before; returns where it is, None when there is none still."""
        payload = _encode(row)
        active = self._active
        if active is not None and active.append(payload):
            return active
        active = self._next()
        return active if active is not None and active.append(payload) else None

    def stored(self, segment: Segment) -> None:
        """Take in that one of its waiting rows is in the store."""
        segment.waiting -= 1
        if segment.waiting or segment.spilled:
            return
        if segment is self._active:
            segment.rewind()
        else:
            self._sealed.remove(segment)
            segment.close(remove=True)

    def spill(self, segment: Segment) -> None:
        """Take in that one of its waiting rows has left the memory before it was stored."""
        segment.waiting -= 1
        segment.spilled += 1

    def backlog(self) -> Segment | None:
        """Return a segment with rows that are on disk alone and none in memory: read it, then `settle` it."""
        active = self._active
        if active is not None and active.spilled and not active.waiting:
            self._active = None
            self._sealed.append(active)
        return next((segment for segment in self._sealed if segment.spilled and not segment.waiting), None)

    def settle(self, segment: Segment) -> None:
        """Take in that all rows of a segment of the backlog are in the store."""
        self.recovered += segment.spilled
        self._sealed.remove(segment)
        segment.close(remove=True)

    def adopt(self) -> None:
        """Take over the segments of processes that are gone."""
        known = {segment.path for segment in self._all()}
        try:
            paths = sorted(self._directory.glob(f"*{_SUFFIX}"))
        except OSError as error:  # no file descriptor is free, for instance
            logger.warning("the usage spool cannot be listed", extra={"error": error.strerror})
            return
        for path in paths:
            if path in known:
                continue
            with suppress(OSError, ValueError):  # taken or removed by another process meanwhile, or empty
                segment = _open(path, os.O_RDWR)
                segment.spilled = sum(1 for _ in segment.rows())
                if segment.spilled:
                    self._sealed.append(segment)
                else:
                    segment.close(remove=True)

    def sync(self) -> None:
        """Flush what was appended to the disk; blocks."""
        for segment in self._all():
            segment.sync(self._flush)

    def close(self) -> int:
        """Let go of everything; returns how many rows stay on disk for the next process."""
        left = 0
        for segment in self._all():
            rows = segment.waiting + segment.spilled
            left += rows
            if rows:
                segment.sync(self._flush)
            segment.close(remove=not rows)
        self._active, self._sealed = None, []
        return left

    def _all(self) -> list[Segment]:
        return [*self._sealed, *(() if self._active is None else (self._active,))]

    def _next(self) -> Segment | None:
        if self._active is not None:
            self._sealed.append(self._active)
            self._active = None
        if len(self._sealed) >= self._max_segments or self._clock() < self._refused_until:
            return None
        try:
            self._active = self._make()
        except OSError as error:
            self._refused_until = self._clock() + RETRY_S
            logger.error(
                "usage rows are kept in memory alone: the disk takes no segment",
                extra={"directory": str(self._directory), "error": error.strerror},
            )
        return self._active

    def _make(self) -> Segment:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}"
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._segment_bytes)


def _open(path: Path, flags: int, reserve: int = 0) -> Segment:
    """Open, lock and map a file; OSError when it cannot be had, ValueError when it is empty."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if reserve:
            os.posix_fallocate(file, 0, reserve)
        return Segment(path, file, os.fstat(file).st_size)
    except BaseException:
        os.close(file)
        if reserve:
            path.unlink(missing_ok=True)
        raise
