"""Shares in a directory, one file a tenant: `file:DIR`, on a volume that all processes of the installation mount.

    <tenant id>.share       32 bytes in base64, mode 0600
    <tenant id>.shredded    when the share was destroyed (RFC 3339)

The directory is to be copied as it is now (`rsync -a --delete`), never as a series of old states: an old copy would
still hold the share of a tenant that was shredded since.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from tenants.errors import KekUnavailable, KeyringUnsafe
from tenants.shares.protocol import SHARE_BYTES, RandomBytes, ShareMissing, Shredded

T = TypeVar("T")


class FileShares:
    """Shares below `directory`, which must exist and which others may not write; `create` makes it, for development."""

    def __init__(self, directory: Path, *, create: bool = False, random_bytes: RandomBytes = os.urandom) -> None:
        self._directory = directory
        self._random_bytes = random_bytes
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            mode = stat.S_IMODE(directory.stat().st_mode)
        except OSError as error:
            raise KeyringUnsafe(
                f"The directory of the tenants' shares cannot be used: {error.strerror}.",
                hint=f"Mount it, or make it for a new installation: (umask 077; mkdir -p {directory}).",
            ) from None
        if not directory.is_dir():
            raise KeyringUnsafe(f"{directory} is not a directory.", hint="Name the directory of the tenants' shares.")
        if mode & 0o002:  # who may read it learns tenants' ids: the shares themselves have mode 0600
            raise KeyringUnsafe(
                f"The directory of the tenants' shares may be written by others (mode {mode:04o}).",
                hint=f"chmod o-w {directory}; of a Kubernetes volume, set the mode of its root.",
            )

    @property
    def uri(self) -> str:
        """The directory."""
        return f"file:{self._directory}"

    async def get(self, tenant_id: UUID) -> bytes:
        """Read the file."""
        return await self._work(lambda: self._read(tenant_id))

    async def get_or_create(self, tenant_id: UUID) -> bytes:
        """Read the file, or write one that is complete and on the disk before it has its name."""
        return await self._work(lambda: self._read_or_create(tenant_id))

    async def destroy(self, tenant_id: UUID, *, at: datetime) -> None:
        """Write the note, overwrite the share, take it away, each on the disk before the next.

        A file system that copies on write or a disk that levels wear may keep the old bytes: keep the directory on an
        encrypted volume if that matters.
        """
        await self._work(lambda: self._destroy(tenant_id, at))

    async def shredded(self) -> Mapping[UUID, datetime]:
        """Read the notes; one whose share is still there is not done and is left out."""
        return await self._work(self._notes)

    async def _work(self, call: Callable[[], T]) -> T:
        """Run a call in a thread: a network file system may hang."""
        try:
            return await asyncio.to_thread(call)
        except OSError as error:
            raise KekUnavailable(
                "Stored secrets cannot be read right now.",
                hint="Check the volume and its rights that LLM_PROXY_KEK_SHARES names.",
                debug=f"tenants' shares: {error}",
            ) from error

    def _share(self, tenant_id: UUID) -> Path:
        return self._directory / f"{tenant_id}.share"

    def _note(self, tenant_id: UUID) -> Path:
        return self._directory / f"{tenant_id}.shredded"

    def _read(self, tenant_id: UUID) -> bytes:
        try:
            text = self._share(tenant_id).read_bytes()
        except FileNotFoundError:
            raise Shredded(tenant_id) if self._note(tenant_id).exists() else ShareMissing(tenant_id) from None
        try:
            share = base64.b64decode(text.strip(), validate=True)
        except binascii.Error:
            share = b""
        if len(share) != SHARE_BYTES:
            raise ShareMissing(tenant_id)
        return share

    def _read_or_create(self, tenant_id: UUID) -> bytes:
        if self._note(tenant_id).exists():
            raise Shredded(tenant_id)
        path = self._share(tenant_id)
        if not path.exists():
            fresh = self._directory / f".{tenant_id}.{secrets.token_hex(4)}"
            try:
                _write(fresh, base64.b64encode(self._random_bytes(SHARE_BYTES)) + b"\n")
                with suppress(FileExistsError):
                    os.link(fresh, path)  # unlike a rename it fails when another process was first
            finally:
                fresh.unlink(missing_ok=True)
            self._sync()
        if self._note(tenant_id).exists():  # destroyed in the meantime: what was made here must not stay
            self._erase(path)
            raise Shredded(tenant_id)
        return self._read(tenant_id)

    def _destroy(self, tenant_id: UUID, at: datetime) -> None:
        with suppress(FileExistsError):
            _write(self._note(tenant_id), at.astimezone(UTC).isoformat().encode() + b"\n")
        self._sync()
        self._erase(self._share(tenant_id))

    def _erase(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.write(b"\0" * size)
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        self._sync()

    def _notes(self) -> dict[UUID, datetime]:
        found = {}
        for path in self._directory.glob("*.shredded"):
            with suppress(ValueError):
                tenant_id = UUID(path.stem)
                if not self._share(tenant_id).exists():
                    found[tenant_id] = datetime.fromisoformat(path.read_text().strip())
        return found

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600 to the disk; `FileExistsError` when there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
