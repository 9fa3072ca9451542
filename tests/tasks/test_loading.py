from __future__ import annotations

import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from esper.tasks import DataOptions, auto_host, get_task, load_data


@pytest.fixture
def vectors():
    """60 vectors of 4 features in 3 classes of 20."""
    rng = np.random.default_rng(0)
    return rng.normal(5.0, 3.0, size=(60, 4)), np.arange(60) % 3


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def idx_bytes(array):
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    kind = array.dtype.str[1:]
    header = struct.pack(">BBBB", 0, 0, codes[kind], array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(directory, suffix="", side=6, train=40, test=10):
    rng = np.random.default_rng(1)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(count) % 4).astype(np.uint8)
    for name, array in arrays.items():
        data = idx_bytes(array)
        (directory / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return arrays


def write_cifar(directory, batches=2, count=20):
    rng = np.random.default_rng(2)
    names = [f"data_batch_{i + 1}.bin" for i in range(batches)] + ["test_batch.bin"]
    images = {}
    for name in names:
        labels = (np.arange(count) % 5).astype(np.uint8)
        images[name] = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        records = np.concatenate([labels[:, None], images[name].reshape(count, -1)], axis=1)
        records.tofile(directory / name)
    return images


class TestNpz:
    def test_one_pair_is_split_in_three(self, tmp_path, vectors):
        splits = load_data(write_npz(tmp_path / "data.npz", x=vectors[0], y=vectors[1]))
        assert splits.sizes == (36, 12, 12)
        assert splits.train_y.bincount().tolist() == [12, 12, 12]
        assert splits.val_y.bincount().tolist() == splits.test_y.bincount().tolist() == [4, 4, 4]
        assert splits.train_x.mean(0).abs().max() < 1e-5
        assert (splits.train_x.std(0, correction=0) - 1).abs().max() < 1e-5

    def test_the_split_is_always_the_same(self, tmp_path, vectors):
        path = write_npz(tmp_path / "data.npz", x=vectors[0], y=vectors[1])
        assert torch.equal(load_data(path).train_x, load_data(str(path)).train_x)

    def test_validation_data_are_held_out_of_training(self, tmp_path, vectors):
        x, y = vectors
        splits = load_data(write_npz(tmp_path / "d.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:]))
        assert splits.sizes == (36, 9, 15)
        assert splits.test_y.tolist() == y[45:].tolist()

    def test_all_three_may_be_given(self, tmp_path, vectors):
        x, y = vectors
        names = {"train": slice(0, 30), "val": slice(30, 45), "test": slice(45, 60)}
        arrays = {f"x_{n}": x[s] for n, s in names.items()} | {f"y_{n}": y[s] for n, s in names.items()}
        splits = load_data(write_npz(tmp_path / "d.npz", **arrays))
        assert splits.sizes == (30, 15, 15)
        mean, std = x[:30].mean(0), x[:30].std(0)
        assert np.allclose(splits.test_x.numpy(), (x[45:] - mean) / std, atol=1e-5)

    def test_classes_may_be_words(self, tmp_path, vectors):
        words = np.array(["cat", "dog", "ape"])[vectors[1]]
        splits = load_data(write_npz(tmp_path / "d.npz", x=vectors[0], y=words))
        assert splits.num_classes == 3

    def test_classes_may_have_gaps_and_be_a_column(self, tmp_path, vectors):
        splits = load_data(write_npz(tmp_path / "d.npz", x=vectors[0], y=(vectors[1] * 10.0 - 10)[:, None]))
        assert sorted(splits.train_y.unique().tolist()) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("shape", "dtype", "expected"),
        [
            ((60, 7, 2), np.float64, (7, 2)),
            ((60, 9, 9), np.uint8, (1, 9, 9)),
            ((60, 9, 8, 3), np.uint8, (3, 9, 8)),
            ((60, 3, 9, 8), np.float32, (3, 9, 8)),
            ((60, 1, 9, 1), np.float32, (1, 9, 1)),
            ((60, 9, 9), np.float64, (1, 9, 9)),
            ((60, 4, 4), np.uint8, (4, 4)),
            ((60, 9, 8), np.uint8, (9, 8)),
            ((60, 5), np.int16, (5,)),
        ],
    )
    def test_the_form_is_read_as_documented(self, tmp_path, vectors, shape, dtype, expected):
        x = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        assert load_data(write_npz(tmp_path / "d.npz", x=x, y=vectors[1])).train_x.shape[1:] == expected

    def test_a_constant_channel_becomes_zero(self, tmp_path, vectors):
        x = vectors[0].copy()
        x[:, 2] = 4.2
        splits = load_data(write_npz(tmp_path / "d.npz", x=x, y=vectors[1]))
        assert splits.test_x[:, 2].abs().max() < 1e-5

    def test_a_path_is_a_task(self, tmp_path, vectors):
        task = get_task(
            str(write_npz(tmp_path / "flowers.npz", x=np.tile(vectors[0], (3, 1)), y=np.tile(vectors[1], 3)))
        )
        assert task.name == "flowers"
        assert task.splits().sizes == (108, 36, 36)

    def refused(self, tmp_path, message, **arrays):
        path = write_npz(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=message) as error:
            load_data(path)
        assert str(path) in str(error.value)

    def test_refuses_nan(self, tmp_path, vectors):
        x = vectors[0].copy()
        x[17, 2] = np.nan
        self.refused(
            tmp_path, r"inputs: expected finite.*1 of 60 samples \(the first is sample 17\); drop", x=x, y=vectors[1]
        )

    def test_refuses_numbers_beyond_float32(self, tmp_path, vectors):
        x = vectors[0].copy()
        x[3, 0] = 1e300
        self.refused(tmp_path, r"NaN or infinity in 1 of 60", x=x, y=vectors[1])

    def test_refuses_one_class(self, tmp_path, vectors):
        self.refused(tmp_path, r"all 60 training targets are of one class.*two or more", x=vectors[0], y=np.ones(60))

    def test_numbers_that_are_not_whole_are_values(self, tmp_path, vectors):
        splits = load_data(write_npz(tmp_path / "d.npz", x=vectors[0], y=vectors[1] * 10 + 0.5))
        assert splits.train_y.dtype == torch.float32
        assert abs(splits.train_y.mean()) < 1e-5
        back = splits.rows.answer(splits.test_y[:, None])
        assert torch.allclose(back, torch.tensor(vectors[1][splits.rows.drawn["test"]] * 10 + 0.5).float(), atol=1e-4)

    def test_refuses_values_as_classes(self, tmp_path, vectors):
        path = write_npz(tmp_path / "d.npz", x=vectors[0], y=vectors[1] + 0.5)
        with pytest.raises(ValueError, match=r"expected classes, got the target 0\.5; leave out --predict classes"):
            load_data(path, options=DataOptions(predict="classes"))

    def test_whole_numbers_are_classes_where_few(self, tmp_path):
        x, many = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60)
        assert load_data(write_npz(tmp_path / "d.npz", x=x, y=many)).rows.classes is None
        assert load_data(write_npz(tmp_path / "d.npz", x=x, y=many // 3)).rows.classes == list(range(20))

    def test_whole_numbers_can_be_values(self, tmp_path, vectors):
        path = write_npz(tmp_path / "d.npz", x=vectors[0], y=vectors[1])
        assert load_data(path, options=DataOptions(predict="values")).train_y.is_floating_point()

    def test_refuses_nan_targets(self, tmp_path, vectors):
        y = vectors[1].astype(float)
        y[4] = np.nan
        self.refused(tmp_path, r"expected classes or finite values, got the target nan", x=vectors[0], y=y)

    def test_refuses_one_hot_targets(self, tmp_path, vectors):
        self.refused(tmp_path, r"shape \[60, 3\]; turn one-hot", x=vectors[0], y=np.eye(3)[vectors[1]])

    def test_refuses_another_number_of_targets(self, tmp_path, vectors):
        self.refused(tmp_path, r"as many targets as inputs.*\[60, 4\] and 59", x=vectors[0], y=vectors[1][:59])

    def test_refuses_empty_arrays(self, tmp_path):
        self.refused(tmp_path, r"at least one", x=np.zeros((0, 4)), y=np.zeros(0, int))

    def test_a_rare_class_stays_in_training(self, tmp_path, vectors):
        y = vectors[1].copy()
        y[:12] = np.arange(100, 112)
        splits = load_data(write_npz(tmp_path / "d.npz", x=vectors[0], y=y))
        assert splits.sizes == (36, 12, 12)
        assert set(range(12)) <= set(splits.rows.drawn["train"])

    def test_the_splits_share_no_row_and_leave_none_out(self, tmp_path, vectors):
        drawn = load_data(write_npz(tmp_path / "d.npz", x=vectors[0], y=vectors[1])).rows.drawn
        assert sorted(drawn["train"] + drawn["val"] + drawn["test"]) == list(range(60))

    def test_refuses_too_few_samples(self, tmp_path):
        self.refused(
            tmp_path, r"3 samples of 3 classes are too few to hold out 1", x=np.ones((3, 2)), y=np.array(list("abc"))
        )

    def test_refuses_test_classes_that_training_lacks(self, tmp_path, vectors):
        x, y = vectors
        arrays = {"x_train": x[:45], "y_train": y[:45], "x_test": x[45:], "y_test": y[45:] + 5}
        self.refused(tmp_path, r"3 class\(es\), such as .*5.* are not among the training targets", **arrays)

    def test_refuses_other_keys(self, tmp_path, vectors):
        self.refused(
            tmp_path,
            r"expected the arrays 'x' and 'y', or 'x_train'.*got \['inputs', 'targets'\]",
            inputs=vectors[0],
            targets=vectors[1],
        )

    def test_refuses_half_a_pair(self, tmp_path, vectors):
        self.refused(
            tmp_path,
            r"'x_test' and 'y_test' belong together",
            x_train=vectors[0],
            y_train=vectors[1],
            x_test=vectors[0],
        )

    def test_refuses_training_data_without_test_data(self, tmp_path, vectors):
        self.refused(tmp_path, r"expected the arrays", x_train=vectors[0], y_train=vectors[1])

    @pytest.mark.parametrize("shape", [(60,), (60, 2, 2, 2, 2), (60, 0)])
    def test_refuses_other_forms(self, tmp_path, vectors, shape):
        self.refused(tmp_path, r"expected vectors \[N, C\], sequences.*reshape them", x=np.ones(shape), y=vectors[1])

    def test_refuses_text_and_complex_inputs(self, tmp_path, vectors):
        self.refused(tmp_path, r"got text; encode it", x=vectors[0].astype(str), y=vectors[1])
        self.refused(tmp_path, r"plain numbers, got an array of type complex128", x=vectors[0] + 1j, y=vectors[1])

    def test_refuses_pickled_objects(self, tmp_path, vectors):
        path = write_npz(tmp_path / "d.npz", x=np.array([{"a": 1}] * 60, dtype=object), y=vectors[1])
        with pytest.raises(ValueError, match=r"not a readable \.npz file of plain arrays"):
            load_data(path)

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:100], lambda b: b"not a zip", lambda b: b"", lambda b: b[: len(b) // 2]]
    )
    def test_refuses_corrupt_files(self, tmp_path, vectors, damage):
        path = write_npz(tmp_path / "d.npz", x=vectors[0], y=vectors[1])
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=r"d\.npz: not a readable \.npz file.*write it again"):
            load_data(path)

    def test_refuses_a_header_that_never_ends(self, tmp_path):
        header = b"{'descr': (\n"
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(ValueError, match=r"d\.npz: not a readable \.npz file"):
            load_data(tmp_path / "d.npz")

    def test_refuses_flipped_bytes(self, tmp_path, vectors):
        path = tmp_path / "d.npz"
        np.savez_compressed(path, x=vectors[0], y=vectors[1])
        data = bytearray(path.read_bytes())
        data[200:220] = bytes(20)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"not a readable \.npz file"):
            load_data(path)


class TestIdx:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_reads_mnist(self, tmp_path, suffix):
        arrays = write_mnist(tmp_path, suffix)
        splits = load_data(tmp_path)
        assert splits.sizes == (32, 8, 10)
        assert splits.train_x.shape[1:] == (1, 6, 6)
        assert splits.test_y.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
        pixels = arrays["t10k-images-idx3-ubyte"][:, None].astype(np.float64)
        scale = (splits.test_x[0, 0, 0, 1] - splits.test_x[0, 0, 0, 0]).item() / (
            pixels[0, 0, 0, 1] - pixels[0, 0, 0, 0]
        )
        shift = splits.test_x[0, 0, 0, 0].item() - pixels[0, 0, 0, 0] * scale
        assert np.allclose(splits.test_x.numpy(), pixels * scale + shift, atol=1e-4)

    def test_reads_big_endian_floats(self, tmp_path):
        write_mnist(tmp_path)
        x = np.linspace(-1, 1, 40 * 4).reshape(40, 2, 2).astype(np.float32)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(x))
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(x[:10]))
        first = load_data(tmp_path).test_x[:, 0, 0, 0]
        assert torch.allclose(first.diff(), first.diff()[0].expand(9), atol=1e-5)

    def test_refuses_a_missing_file(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx.*all four are needed"):
            load_data(tmp_path)

    def test_refuses_a_file_that_is_cut_off(self, tmp_path):
        write_mnist(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(
            ValueError, match=r"expected 1456 bytes for shape \[40, 6, 6\], got 1449; the file is cut off"
        ):
            load_data(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\0\0", b"PK\3\4 zip", b"\0\0\x08\3\0\0"])
    def test_refuses_other_content(self, tmp_path, content):
        write_mnist(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: (not an IDX file|expected \d+ bytes)"):
            load_data(tmp_path)

    @pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"plain"])
    def test_refuses_broken_gzip(self, tmp_path, damage):
        write_mnist(tmp_path, ".gz")
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=r"not a readable gzip file"):
            load_data(tmp_path)

    def test_refuses_another_number_of_labels(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(39, np.uint8)))
        with pytest.raises(ValueError, match=r"as many targets as inputs"):
            load_data(tmp_path)


class TestCifar:
    def test_reads_batches(self, tmp_path):
        images = write_cifar(tmp_path)
        splits = load_data(tmp_path)
        assert splits.sizes == (32, 8, 20)
        assert splits.train_x.shape[1:] == (3, 32, 32)
        red = images["test_batch.bin"][:, 0].astype(np.float64)
        ours = splits.test_x[:, 0].numpy()
        assert np.corrcoef(red.ravel(), ours.ravel())[0, 1] > 0.999999

    def test_needs_the_test_batch(self, tmp_path):
        write_cifar(tmp_path)
        (tmp_path / "test_batch.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"2 training batches of CIFAR-10 but no test_batch\.bin"):
            load_data(tmp_path)

    @pytest.mark.parametrize("length", [0, 3072, 3073 * 2 + 1])
    def test_refuses_a_file_that_is_cut_off(self, tmp_path, length):
        write_cifar(tmp_path)
        (tmp_path / "data_batch_2.bin").write_bytes(bytes(length))
        with pytest.raises(ValueError, match=rf"data_batch_2\.bin: expected records of 3073 bytes.*got {length} bytes"):
            load_data(tmp_path)


class FakeVision:
    """A torchvision-style data set of 8-bit images [H, W, C] in ``numpy``, as PIL images become."""

    def __init__(self, count, shape=(6, 5, 3)):
        self.images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


class TestDatasets:
    def test_reads_a_training_and_a_test_set(self):
        splits = load_data(FakeVision(40), test=FakeVision(10))
        assert splits.sizes == (32, 8, 10)
        assert splits.train_x.shape[1:] == (3, 6, 5)

    def test_colours_that_come_last_stay_together(self):
        test = FakeVision(10)
        splits = load_data(FakeVision(40), test=test)
        for colour in range(3):
            ours, theirs = splits.test_x[:, colour].numpy().ravel(), test.images[..., colour].ravel().astype(float)
            assert np.corrcoef(ours, theirs)[0, 1] > 0.999999

    def test_reads_grey_images(self):
        grey = [(Image.fromarray(image), i % 2) for i, image in enumerate(FakeVision(40, (6, 5)).images)]
        assert load_data(grey).train_x.shape[1:] == (1, 6, 5)

    def test_reads_tensors(self):
        dataset = TensorDataset(torch.randn(30, 4, 2), torch.arange(30) % 3)
        splits = load_data(dataset)
        assert splits.train_x.shape == (18, 4, 2)
        assert auto_host(splits, batch_size=8).build_host()(splits.val_x).shape == (6, 3)

    def test_refuses_inputs_of_several_shapes(self):
        dataset = FakeVision(4)
        dataset.images = [np.zeros((2, 2, 3)), np.zeros((2, 2, 3)), np.zeros((2, 3, 3)), np.zeros((2, 2, 3))]
        with pytest.raises(
            ValueError, match=r"FakeVision\[2\]: expected inputs of one shape, \[2, 2, 3\], got \[2, 3, 3\]"
        ):
            load_data(dataset)

    def test_refuses_samples_that_are_no_pairs(self):
        with pytest.raises(ValueError, match=r"TensorDataset\[0\]: expected a pair \(input, target\)"):
            load_data(TensorDataset(torch.randn(30, 4)))

    def test_refuses_an_empty_set(self):
        with pytest.raises(ValueError, match=r"the data set is empty"):
            load_data(FakeVision(0))

    def test_refuses_other_objects(self):
        with pytest.raises(ValueError, match=r"expected a path or a data set.*got int"):
            load_data(3)

    def test_a_file_has_its_own_test_data(self, tmp_path):
        with pytest.raises(ValueError, match=r"'test' belongs to a data set object"):
            load_data(tmp_path, test=FakeVision(3))


class TestPaths:
    def test_refuses_a_missing_path(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"does not exist; expected a \.npz file, a table"):
            load_data(tmp_path / "nothing")

    def test_refuses_a_file_of_another_kind(self, tmp_path):
        (tmp_path / "data.xlsx").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"data\.xlsx: expected a \.npz file, a table.*numpy\.savez"):
            load_data(tmp_path / "data.xlsx")

    @pytest.mark.parametrize(("names", "found"), [([], "no files"), (["a.png", "b.png"], r"a\.png, b\.png")])
    def test_refuses_a_directory_of_the_wrong_format(self, tmp_path, names, found):
        for name in names:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"expected IDX files .*CIFAR-10 binary files.*found {found}"):
            load_data(tmp_path)
