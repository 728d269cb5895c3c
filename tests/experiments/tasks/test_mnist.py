import gzip

import pytest
import torch

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks.mnist import SequentialMNIST, read_idx, read_mnist
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.task import generator_for


def make(digits, **options):
    options = {"rows": False, "permuted": False, "seed": 0, **options}
    return SequentialMNIST(digits, 4, dtype=torch.float32, **options)


def write(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


def test_idx_values_and_shape(tmp_path):
    path = write(tmp_path / "a", b"\0\0\x08\x02", b"\0\0\0\x02\0\0\0\x03", bytes(range(6)))
    values = read_idx(path)
    assert values.dtype == torch.uint8
    assert values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\x01\0\x08\x01\0\0\0\x01\0", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0", "not an idx file"),
        (b"\0\0\x08\x03\0\0\0\x01", "inside its header"),
        (b"\0\0\x08\x01\0\0\0\x03\0\0", "holds 2 values, but says it has 3"),
        (b"\0\0\x08\x01\0\0\0\x03\0\0\0\0", "holds 4 values, but says it has 3"),
        (b"\0\0\x08\x01\0\0\0\0", "empty"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_idx(write(tmp_path / "a", content))


def test_digits_are_read_whole(tiny_mnist):
    digits = read_mnist(DataFolder(tiny_mnist.parent))
    assert digits["train"].sequences.shape == (36, 4, 3)
    assert digits["test"].labels.tolist() == list(range(10))


def test_damaged_digits_are_refused(tiny_mnist):
    path = tiny_mnist / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=r"t10k-images.*sha256"):
        read_mnist(DataFolder(tiny_mnist.parent))


def test_missing_digits_are_named(tiny_mnist):
    (tiny_mnist / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"missing mnist data: train-labels-idx1-ubyte \(or.*--download"
    ):
        read_mnist(DataFolder(tiny_mnist.parent))


def test_images_and_labels_must_belong_together(tiny_mnist, monkeypatch):
    from spectral_triton.experiments.tasks import mnist

    monkeypatch.setattr(mnist, "FILES", dict.fromkeys(mnist.FILES))
    labels = tiny_mnist / "train-labels-idx1-ubyte.gz"
    labels.write_bytes((tiny_mnist / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="not images and their labels"):
        read_mnist(DataFolder(tiny_mnist.parent))
    labels.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x24" + bytes([3] * 36)))
    with pytest.raises(DataError, match="label 9, training ends at 3"):
        read_mnist(DataFolder(tiny_mnist.parent))


def test_the_other_file_names_of_the_digits(tiny_mnist):
    expected = read_mnist(DataFolder(tiny_mnist.parent))
    for path in list(tiny_mnist.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    read = read_mnist(DataFolder(tiny_mnist))
    for split in ("train", "test"):
        assert torch.equal(read[split].sequences, expected[split].sequences)


def idx(values):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()


@pytest.mark.parametrize(("prefix", "test"), [("", "t10k"), ("emnist-letters-", "test")])
def test_another_set_of_the_same_form_is_read_with_a_warning(tiny_mnist, tmp_path, prefix, test):
    for split, count in (("train", 24), (test, 6)):
        images = torch.full((count, 2, 5), 7, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 12 + 1
        (tmp_path / f"{prefix}{split}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    folder = tmp_path
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="whole, but not those of MNIST.*24 train.*13 classes"):
        digits = read_mnist(DataFolder(folder))
    task = make(digits)
    assert task.output_size == 13
    assert next(iter(task.batches("test"))).inputs.shape[0] == 10


def test_mnist_itself_comes_before_sets_with_names_of_their_own(tiny_mnist):
    expected = read_mnist(DataFolder(tiny_mnist.parent))
    for name in ("digits", "letters"):
        (tiny_mnist / f"emnist-{name}-train-images-idx3-ubyte.gz").touch()
    read = read_mnist(DataFolder(tiny_mnist.parent))
    assert torch.equal(read["train"].sequences, expected["train"].sequences)


def test_two_sets_in_one_folder_are_told_apart_by_nobody(tmp_path):
    for name in ("digits", "letters"):
        (tmp_path / f"emnist-{name}-train-images-idx3-ubyte.gz").touch()
    with pytest.raises(DataError, match="several data sets lie in one folder, emnist-digits"):
        read_mnist(DataFolder(tmp_path))


def test_download_fetches_what_is_missing(tiny_mnist, tmp_path, server):
    folder, address = server
    for path in tiny_mnist.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    kept = tmp_path / "new" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    kept.parent.mkdir(parents=True)
    (folder / kept.name).rename(kept)
    data = DataFolder(tmp_path / "new", download=True, mirror=f"{address}/")
    fetched, expected = read_mnist(data), read_mnist(DataFolder(tiny_mnist.parent))
    for split in ("train", "test"):
        assert torch.equal(fetched[split].sequences, expected[split].sequences)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(kept.read_bytes())
    (kept.parent / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz sent was thrown away"):
        read_mnist(data)
    assert not (kept.parent / "train-labels-idx1-ubyte.gz").exists()


def test_pixels_one_by_one(tiny_mnist):
    digits = read_mnist(DataFolder(tiny_mnist.parent))
    task = make(digits)
    assert (task.input_size, task.output_size, task.steps_per_epoch) == (1, 10, 9)
    (batch,) = task.batches("test")
    assert batch.inputs.shape == (12, 10, 1)
    expected = digits["test"].sequences.reshape(10, 12).t() / 255
    torch.testing.assert_close(batch.inputs[..., 0], expected, check_dtype=False)
    assert batch.targets.tolist() == list(range(10))


def test_rows(tiny_mnist):
    digits = read_mnist(DataFolder(tiny_mnist.parent))
    (batch,) = make(digits, rows=True).batches("test")
    assert batch.inputs.shape == (4, 10, 3)
    expected = digits["test"].sequences.transpose(0, 1) / 255
    torch.testing.assert_close(batch.inputs, expected, check_dtype=False)


def test_permutation_is_one_for_all_images_splits_and_seeds(tiny_mnist):
    digits = read_mnist(DataFolder(tiny_mnist.parent))
    plain, first, second = (
        next(iter(make(digits, permuted=permuted, seed=seed).batches("test"))).inputs
        for permuted, seed in ((False, 0), (True, 0), (True, 1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    order = make(digits, permuted=True).permutation
    assert torch.equal(first, plain[order])
    assert order.sort().values.tolist() == list(range(12))
    with pytest.raises(UsageError, match="--permuted"):
        make(digits, rows=True, permuted=True)


def test_validation_is_taken_from_training(tiny_mnist):
    digits = read_mnist(DataFolder(tiny_mnist.parent))
    tasks = [make(digits, seed=seed) for seed in (0, 0, 1)]
    assert [len(tasks[0].splits[s]) for s in ("train", "validation", "test")] == [33, 3, 10]
    held_out = [task.splits["validation"].sequences for task in tasks]
    assert torch.equal(held_out[0], held_out[1])
    assert not torch.equal(held_out[0], held_out[2])
    both = torch.cat([tasks[0].splits[s].sequences.flatten(1) for s in ("train", "validation")])
    original = digits["train"].sequences.flatten(1)
    assert sorted(both.tolist()) == sorted(original.tolist())


def test_real_digits(real_data):
    task = make(read_mnist(real_data))
    assert [len(task.splits[s]) for s in ("train", "validation", "test")] == [55000, 5000, 10000]
    assert next(iter(task.batches("test"))).inputs.shape == (784, 250, 1)
    assert task.splits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_the_permutation_is_that_of_the_published_runs(tiny_mnist):
    order = make(read_mnist(DataFolder(tiny_mnist.parent)), permuted=True).permutation
    expected = torch.randperm(12, generator=generator_for(0, "pixel-mnist", "permutation"))
    assert order.equal(expected)
