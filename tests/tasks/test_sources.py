"""Files that lie about their size or are packed to burst take no memory, and none can run code."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from esper.tasks import DataOptions, load_data

SMALL = DataOptions(most_gigabytes=0.01)


def npy(array, shape=None):
    """An array as a ``.npy`` file whose header claims ``shape``."""
    stream = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def mnist(directory, **content):
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, 10, 2, 2) + bytes(40)
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 10) + bytes(range(10))
    files = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}
    files |= {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": labels}
    for name, data in (files | content).items():
        (directory / name).write_bytes(data)
    return directory


def test_a_packed_npz_is_measured_before_it_is_unpacked(tmp_path):
    path = npz(tmp_path / "d.npz", x=npy(np.zeros((60, 40_000))), y=npy(np.arange(60) % 3))
    assert path.stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"expected at most 0\.01 GiB of data, got 0\.02 GiB.*--most-gigabytes"):
        load_data(path, options=SMALL)


@pytest.mark.parametrize("shape", [(10**12, 4), (60, 10**12), (61, 4), (59, 4), (0, 4)])
def test_an_npz_whose_header_claims_another_size_is_refused(tmp_path, shape):
    path = npz(tmp_path / "d.npz", x=npy(np.zeros((60, 4)), shape), y=npy(np.arange(60) % 3))
    with pytest.raises(ValueError, match=r"x\.npy claims the shape \[\d+, \d+\] and has \d+ bytes"):
        load_data(path)


def test_an_idx_file_that_claims_much_is_refused_by_its_header(tmp_path):
    claim = struct.pack(">BBBBIII", 0, 0, 14, 3, 2**31, 2**31, 2**31)
    with pytest.raises(ValueError, match=r"expected at most 4 GiB of data, got [\d,.]+ GiB"):
        load_data(mnist(tmp_path, **{"train-images-idx3-ubyte": claim}))


def test_a_gzip_that_holds_more_than_it_says_is_not_unpacked(tmp_path):
    directory = mnist(tmp_path)
    whole = (directory / "train-images-idx3-ubyte").read_bytes()
    (directory / "train-images-idx3-ubyte").unlink()
    (directory / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole + bytes(30_000_000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"expected 56 bytes for shape \[10, 2, 2\], got more"):
        load_data(directory, options=SMALL)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_packed_table_is_measured(tmp_path):
    pytest.importorskip("polars")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"a,y\n" + b"1,2\n" * 5_000_000))
    with pytest.raises(ValueError, match=r"expected at most 0\.01 GiB"):
        load_data(tmp_path / "d.csv.gz", options=SMALL)


def test_a_parquet_of_many_equal_rows_is_measured(tmp_path):
    polars = pytest.importorskip("polars")
    polars.DataFrame({"x": np.zeros(2_000_000), "y": np.zeros(2_000_000, int)}).write_parquet(tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=r"expected at most 0\.01 GiB of data, got 0\.03 GiB"):
        load_data(tmp_path / "d.parquet", options=SMALL)


def test_images_are_measured_by_their_headers(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (3000, 2000)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=r"expected at most 0\.01 GiB of data, got 0\.01 GiB"):
        load_data(tmp_path, options=SMALL)


def test_an_image_that_claims_to_be_vast_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    vast = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(vast)
    with pytest.raises(ValueError, match=r"1\.png: not a readable image .*decompression bomb"):
        load_data(tmp_path)


def test_texts_are_measured(tmp_path):
    with (tmp_path / "d.txt").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(ValueError, match=r"expected at most 0\.01 GiB of data, got 0\.02 GiB"):
        load_data(tmp_path / "d.txt", options=SMALL)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for dtype in (object, np.dtype([("a", object)])):
        array = np.empty(6, dtype)
        array[:] = Evil() if dtype is object else (Evil(),)
        np.savez(tmp_path / "d.npz", x=array, y=np.arange(6) % 2)
        with pytest.raises(ValueError, match=r"holds pickled objects"):
            load_data(tmp_path / "d.npz")
    assert not (tmp_path / "ran").exists()


def test_postscript_is_no_image(tmp_path, monkeypatch):
    """Pillow would hand it to another program, which runs it."""
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: ran.append(arguments))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n%%EOF\n"
        )
    with pytest.raises(ValueError, match=r"1\.png: not a readable image"):
        load_data(tmp_path)
    assert not ran


class TestFolders:
    def folder(self, path, sizes=((8, 8),), modes=("L",), count=6):
        for name in ("cat", "dog"):
            (path / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new(modes[i % len(modes)], sizes[i % len(sizes)], 40 * i)
                image.save(path / name / f"{i}.png")
        return path

    def test_names_of_folders_are_the_classes(self, tmp_path):
        splits = load_data(self.folder(tmp_path))
        assert splits.rows.classes == ["cat", "dog"]
        assert splits.train_x.shape[1:] == (1, 8, 8)
        assert sum(splits.sizes) == 12

    def test_one_coloured_image_makes_all_coloured(self, tmp_path):
        assert load_data(self.folder(tmp_path, modes=("L", "RGB"))).train_x.shape[1:] == (3, 8, 8)

    def test_sizes_must_agree_or_a_side_be_given(self, tmp_path):
        self.folder(tmp_path, sizes=((8, 8), (9, 8)))
        with pytest.raises(ValueError, match=r"images of one size, got 8 × 8 \(0\.png\) and 9 × 8 .*--image-side"):
            load_data(tmp_path)
        splits = load_data(tmp_path, options=DataOptions(image_side=16))
        assert splits.train_x.shape[1:] == (1, 16, 16)
        assert "scaled to 16 × 16 pixels by Pillow" in splits.rows.meaning

    def test_training_and_test_data_may_be_apart(self, tmp_path):
        self.folder(tmp_path / "train", count=10)
        self.folder(tmp_path / "test", count=3)
        assert load_data(tmp_path).sizes == (16, 4, 6)

    def test_refuses_folders_without_images(self, tmp_path):
        (tmp_path / "cat").mkdir()
        with pytest.raises(ValueError, match=r"expected a folder of images for each class .*found none"):
            load_data(tmp_path)

    def test_refuses_an_image_that_is_cut_off(self, tmp_path):
        file = self.folder(tmp_path, sizes=((64, 64),)) / "cat" / "3.png"
        file.write_bytes(file.read_bytes()[:60])
        with pytest.raises(ValueError, match=r"3\.png: not a readable image"):
            load_data(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process is enforced on Linux alone")
def test_a_bomb_takes_no_memory(tmp_path):
    """0.6 GB of zeros in a few megabytes: refused in a process that may not take half of that beyond what it has."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(npy(np.zeros((0, 1)), (50, 12_000_000 // 8)))
            for _ in range(50):
                member.write(bytes(12_000_000))
        archive.writestr("y.npy", npy(np.arange(50) % 2))
    code = f"""
import resource, sys
from esper.tasks import DataOptions, load_data
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
try:
    load_data({str(path)!r}, options=DataOptions(most_gigabytes=0.25))
except ValueError as error:
    sys.exit("expected at most 0.25 GiB" not in str(error))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
