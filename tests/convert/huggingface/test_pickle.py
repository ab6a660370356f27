"""pytorch_model.bin without PyTorch: the values of torch.load, and only tensors."""

import collections
import io
import os
import pickle
import random
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch

from agent_jax.convert.huggingface.torch_file import TorchFile
from agent_jax.convert.huggingface.torch_pickle import MAX_OPCODES, RefusedPickleError, read_tensors


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def rewritten(path, change) -> None:
    """Rewrite the archive with `change` of its entries {name: bytes}, stored as torch stores them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)


def with_pickle(path, change) -> None:
    rewritten(path, lambda entries: {name: change(content) if name.endswith("data.pkl") else content
                                     for name, content in entries.items()})


def same_as_torch(path) -> None:
    expected, file = torch.load(path, weights_only=False), TorchFile(path)  # written by this test
    assert list(file.shapes) == list(expected)
    for name, tensor in expected.items():
        assert file.shapes[name] == tuple(tensor.shape)
        if tensor.is_floating_point():
            found = file.read(name)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, tensor.detach().float().numpy())


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16"),
                                             (torch.float64, "F64")])
def test_a_file_holds_the_values_that_torch_reads(tmp_path, dtype, name):
    tensors = {"a": torch.randn(5, 3).to(dtype), "scalar": torch.tensor(2.5, dtype=dtype), "i": torch.arange(4)}
    path = saved(tmp_path / "x.bin", tensors)
    same_as_torch(path)
    file = TorchFile(path)
    assert file.dtypes == {"a": name, "scalar": name, "i": "I64"}
    np.testing.assert_array_equal(file.read("a", slice(1, 3)), tensors["a"][1:3].float())


def test_the_state_of_a_module_with_parameters_and_versions_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = module.state_dict(keep_vars=True)
    assert type(state["0.weight"]) is torch.nn.Parameter
    assert hasattr(state, "_metadata")
    same_as_torch(saved(tmp_path / "x.bin", state))


@pytest.mark.parametrize("protocol", [2, 4])
def test_tied_transposed_sliced_and_expanded_tensors_are_the_views_that_were_saved(tmp_path, protocol):
    whole = torch.randn(6, 4)
    views = {"whole": whole, "tied": whole, "transposed": whole.T, "rows": whole[2:4], "columns": whole[:, 1::2],
             "expanded": whole[0].expand(3, 4), "empty": whole[:0]}
    path = saved(tmp_path / "x.bin", views, pickle_protocol=protocol)
    same_as_torch(path)
    assert path.stat().st_size < 4000  # one storage


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(("content", "message"), [
    (lambda place: {"w": torch.ones(2), "x": Runs(place / "ran")}, "asks for 'posix.system'"),
    (lambda _: {"w": torch.nn.Linear(2, 2)}, "asks for 'torch.nn.modules.linear.Linear'"),
    (lambda _: {"w": np.ones(2)}, r"asks for 'numpy._core.multiarray._reconstruct'"),
    (lambda _: {"step": 3}, "holds a int under 'step', expected a tensor"),
    (lambda _: {"model": {"w": torch.ones(2)}}, "holds a dict under 'model', expected a tensor"),
    (lambda _: {"state_dict": {"w": {"x": torch.ones(2)}}}, "holds a dict under 'w', expected a tensor"),
    (lambda _: [torch.ones(2)], "holds a list, expected a state dict"),
    (lambda _: {"cls": collections.OrderedDict}, "holds a collections.OrderedDict under 'cls', expected a tensor"),
    (lambda _: {3: torch.ones(2)}, "a dict with a int as key"),
    (lambda _: {"w": torch.ones(2).to(torch.complex64)}, "asks for 'torch.ComplexFloatStorage'"),
], ids=["system", "module", "numpy", "number", "nested", "state", "list", "class", "key", "complex"])
def test_other_objects_are_refused_by_name_and_nothing_is_executed(tmp_path, content, message):
    path = saved(tmp_path / "x.bin", content(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        TorchFile(path)
    assert str(path) in str(error.value)
    assert [item.name for item in tmp_path.iterdir()] == ["x.bin"]


def test_unexpected_uses_of_allowed_names_are_refused():
    called = b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01\x85q\x02Rq\x03."
    assert isinstance(pickle.loads(called), dict)  # noqa: S301 - made here; pickle accepts it
    with pytest.raises(RefusedPickleError, match="calls collections.OrderedDict with arguments"):
        read_tensors(called)
    with pytest.raises(RefusedPickleError, match="calls torch.FloatStorage"):
        read_tensors(b"\x80\x02ctorch\nFloatStorage\n)R.")
    with pytest.raises(RefusedPickleError, match="sets the state of a torch.FloatStorage"):
        read_tensors(b"\x80\x02ctorch\nFloatStorage\n}b.")
    for opcode in (b"(I1\nios\nsystem\n.", b"\x80\x02cos\nsystem\n)\x81.", b"\x80\x02\x82\x01.",
                   b"\x80\x05\x96" + b"\1" * 9):
        with pytest.raises(RefusedPickleError, match="has the opcode|asks for .os.system.|damaged"):
            read_tensors(opcode)


def peak_memory() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("bomb", [
    b"\x80\x02" + b"(" * 300_000 + b"t" * 299_999 + b".",  # deep
    b"\x80\x02" + b"]" * (MAX_OPCODES + 1),  # long
    b"\x80\x02}r\xff\xff\xff\x7f.",  # a large memo index, for which the C unpickler allocates
    b"\x80\x02X\xff\xff\xff\xff.",  # a text of 4 GB by its length
    b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",  # bytes of length 2^60
    b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",  # a frame of length 2^60
    b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 200 + b".",  # a value of 2^200 shared parts
    b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    # a tensor of a shape of 100,000 axes, a thousand times
    b"\x80\x02(" + b"K\1" * 100_000 + b"tq\0ctorch._utils\n_rebuild_tensor_v2\nq\1(X\7\0\0\0storage"
    b"ctorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpuK\1tQK\0h\0h\0NNtq\2(" + b"h\1h\2R" * 1000 + b"t.",
], ids=["deep", "long", "memo", "text", "bytes", "frame", "doubling", "number", "axes"])
def test_a_pickle_that_would_take_all_memory_is_refused_at_once(bomb):
    before = peak_memory()
    try:
        assert read_tensors(bomb) == {}
    except RefusedPickleError as error:
        assert len(str(error)) < 300  # noqa: PT017 - some are harmless to this reader
    assert peak_memory() - before < 200_000  # KiB


def test_an_expanded_tensor_takes_no_memory_before_it_is_read(tmp_path):
    huge = {"w": torch.ones(1).expand(10**6, 10**6)}
    before = peak_memory()
    assert TorchFile(saved(tmp_path / "x.bin", huge)).shapes == {"w": (10**6, 10**6)}
    assert peak_memory() - before < 100_000


def test_the_format_before_1_6_is_refused_with_the_conversion(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"1\.6.*torch.load\(PATH, weights_only=True\)"):
        TorchFile(path)


def test_a_tensor_beyond_its_storage_is_refused_with_numbers(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.ones(6, 4)})
    with_pickle(path, lambda content: content.replace(b"K\x06K\x04\x86", b"K\x07K\x04\x86"))
    with pytest.raises(ValueError, match=r"shape \[7, 4\], strides \[4, 1\] and offset 0 reaches to value 27 of "
                                         r"storage '0', which has 24"):
        TorchFile(path)
    path = saved(tmp_path / "y.bin", {"w": torch.ones(6, 4)})
    with_pickle(path, lambda content: content.replace(b"K\x04K\x01\x86", b"J\xfc\xff\xff\xffK\x01\x86"))
    with pytest.raises(ValueError, match="storage and whole numbers"):
        TorchFile(path)


def test_a_storage_of_another_length_or_none_is_refused_with_numbers(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.ones(6, 4)})
    rewritten(path, lambda entries: {name: content[:-4] if name.endswith("data/0") else content
                                     for name, content in entries.items()})
    with pytest.raises(ValueError, match=r"data/0' has 92 bytes for 92, expected 96 .*24 values of F32"):
        TorchFile(path)
    rewritten(path, lambda entries: {name: content for name, content in entries.items() if not name.endswith("data/0")})
    with pytest.raises(ValueError, match=r"data/0' is not in the archive.* 24 values"):
        TorchFile(path)


def test_compressed_and_foreign_archives_are_refused(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="data.pkl is compressed"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if name.endswith("data/0") else zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=r"data/0' has \d+ bytes for 4,000, expected 4,000"):
        TorchFile(path)
    rewritten(path, lambda entries: {name: b"big" + b"end" if name.endswith("byteorder") else content
                                     for name, content in entries.items()})
    with pytest.raises(ValueError, match="big-endian"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a zip file")
    with pytest.raises(ValueError, match="0 entries NAME/data.pkl"):
        TorchFile(path)


def test_a_truncated_or_empty_file_is_refused_with_its_length(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.randn(40, 4), "v": torch.randn(9)})
    content = path.read_bytes()
    for length in [0, 1, 30, *range(50, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"x.bin: damaged.* {length:,} bytes"):
            TorchFile(path)


def test_a_flipped_byte_of_the_headers_gives_tensors_or_a_refusal_and_never_another_error(tmp_path):
    path = saved(tmp_path / "x.bin", {"w": torch.randn(3, 4), "v": torch.randn(9).half()})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    draw = random.Random(0)
    [pickled] = [name for name in entries if name.endswith("data.pkl")]
    for _ in range(400):
        damaged = bytearray(entries[pickled])
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in {**entries, pickled: bytes(damaged)}.items():
                archive.writestr(name, content)
        path.write_bytes(stream.getvalue())
        read_or_refused(path)
    content = stream.getvalue()
    for _ in range(400):
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        read_or_refused(path)


def read_or_refused(path) -> None:
    try:
        file = TorchFile(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
        return
    for name, dtype in file.dtypes.items():
        if dtype in ("F32", "F16") and np.prod(file.shapes[name]) < 1000:
            assert file.read(name).shape == file.shapes[name]
