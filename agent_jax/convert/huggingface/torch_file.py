"""A file of torch.save (`pytorch_model.bin`), read without PyTorch: a mapped zip archive.

    NAME/data.pkl     names, shapes, strides, read without executing it (torch_pickle.py)
    NAME/data/KEY     the values of a storage, uncompressed; tied tensors share one

The directory of the archive and data.pkl are read at once, tensors on request.
"""

from __future__ import annotations

import errno
import mmap
import pathlib
import struct
import zipfile

import jax.numpy as jnp
import numpy as np

from agent_jax.convert.huggingface.torch_pickle import RefusedPickleError, Storage, TensorHeader, read_tensors

MAX_PICKLE = 16 * 2**20  # bytes of data.pkl, which has about 250 a tensor
# The first bytes of the format before PyTorch 1.6 (2020): a pickle of this number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field; APPNOTE.TXT of PKWARE, 4.3.7
SCRIPT = ("a TorchScript archive, which is a program, expected a state dict; if you trust it, write one in PyTorch by "
          "torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(), 'NEW.pt')")
DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": jnp.dtype("bfloat16")}


class TorchFile:
    """Tensors by name; a context manager, which unmaps the file."""

    def __init__(self, path: pathlib.Path):
        """Open `path` and read its headers.

        Raises:
            ValueError: the file is truncated or inconsistent, holds anything but tensors, or has the format before
                PyTorch 1.6.
        """
        self.path = path
        with path.open("rb") as file:
            start = file.read(len(LEGACY_MAGIC))
            if start == LEGACY_MAGIC:
                raise ValueError(f"{path}: has PyTorch's format before 1.6; convert it in PyTorch by "
                                 "torch.save(torch.load(PATH, weights_only=True), PATH)")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if start else b""
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries, root = _entries(archive)
                if f"{root}constants.pkl" in self._entries:
                    raise RefusedPickleError(SCRIPT)
                self._headers = read_tensors(_pickle(archive, root))
        except RefusedPickleError as error:
            raise ValueError(f"{path}: {error}") from error
        # zipfile raises ValueError or OSError(EINVAL) for a negative offset, RuntimeError for encryption.
        except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise ValueError(f"{path}: damaged or not a PyTorch file, {len(self._map):,} bytes ({error}); copy or "
                             "download it again") from error
        self._places = {storage.key: self._place(f"{root}data/{storage.key}", storage)
                        for storage in {header.storage for header in self._headers.values()}}
        self.shapes: dict[str, tuple[int, ...]] = {name: header.shape for name, header in self._headers.items()}
        self.dtypes: dict[str, str] = {name: header.storage.dtype for name, header in self._headers.items()}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A floating tensor, or some of its rows, in f32 on the host."""
        array = self._view(self._headers[name])
        return np.array(array if rows is None else array[rows], dtype=np.float32, order="C")

    def close(self) -> None:
        """Close the file; it is unmapped with the last view of it."""
        self._map = b""

    def _view(self, header: TensorHeader) -> np.ndarray:
        """The tensor as a view of the mapped file; bounds were checked."""
        storage = header.storage
        stored = np.frombuffer(self._map, np.uint8, storage.bytes, self._places[storage.key])
        values = stored.view(DTYPES[storage.dtype])
        steps = [stride * values.itemsize for stride in header.strides]
        return np.lib.stride_tricks.as_strided(values[header.offset :], header.shape, steps, writeable=False)

    def _place(self, name: str, storage: Storage) -> int:
        """The offset of a storage in the file."""
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"{self.path}: {name[:200]!r} is not in the archive, but its pickle has it with "
                             f"{storage.values:,} values")
        if entry.file_size != storage.bytes or entry.compress_size != entry.file_size or entry.compress_type:
            raise ValueError(f"{self.path}: {name[:200]!r} has {entry.compress_size:,} bytes for {entry.file_size:,}, "
                             f"expected {storage.bytes:,} uncompressed: {storage.values:,} values of {storage.dtype}")
        header = self._map[max(entry.header_offset, 0) : max(entry.header_offset, 0) + LOCAL_HEADER.size]
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header.ljust(LOCAL_HEADER.size, b"\0"))
        first = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\3\4" or first + storage.bytes > len(self._map):
            raise ValueError(f"{self.path}: {name[:200]!r} is not at bytes {first:,} to {first + storage.bytes:,} of "
                             f"{len(self._map):,}; the file is damaged: copy or download it again")
        return first


def _entries(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The archive's directory by name, and the folder within it that holds data.pkl."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise zipfile.BadZipFile("duplicate names in its directory")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise zipfile.BadZipFile(f"{len(roots)} entries NAME/data.pkl in the archive, expected one")
    order = f"{roots[0]}byteorder"
    if order in entries and (entries[order].file_size != 6 or archive.read(order) != b"little"):
        raise zipfile.BadZipFile("written on a big-endian machine, which is not supported")
    return entries, roots[0]


def _pickle(archive: zipfile.ZipFile, root: str) -> bytes:
    entry = archive.getinfo(f"{root}data.pkl")
    if entry.compress_type or entry.file_size > MAX_PICKLE:
        raise RefusedPickleError(f"its data.pkl is compressed or has {entry.file_size:,} bytes, expected at most "
                                 f"{MAX_PICKLE:,} uncompressed")
    return archive.read(entry)
