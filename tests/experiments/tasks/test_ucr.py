import gzip

import pytest
import torch

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks import ucr
from spectral_triton.experiments.tasks.series_table import read_table
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.ucr import UCRSeries, filled, read_series


def make(folder, name="Tiny", **options):
    series, classes = read_series(DataFolder(folder.parent), name)
    options = {"normalize": False, "seed": 0, **options}
    return UCRSeries(series, classes, 2, dtype=torch.float64, **options)


def test_series_and_labels(tiny_series):
    task = make(tiny_series)
    assert (task.input_size, task.output_size, task.has_validation) == (1, 2, False)
    (batch,) = task.batches("test")
    assert batch.inputs[..., 0].t().tolist() == [[9, 7, 5, 3, 1], [1, 2, 4, 8, 16]]
    assert batch.targets.tolist() == [1, 0]
    assert task.splits["train"].labels.tolist() == [0, 1, 0]


def test_gzipped_files_in_a_folder_of_their_own(tiny_series):
    expected = next(iter(make(tiny_series).batches("test"))).inputs
    (tiny_series / "Tiny").mkdir()
    for split in ("TRAIN", "TEST"):
        path = tiny_series / f"Tiny_{split}.tsv"
        (tiny_series / "Tiny" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(next(iter(make(tiny_series).batches("test"))).inputs, expected)


def test_normalization_is_per_series(tiny_series):
    (tiny_series / "Tiny_TEST.tsv").write_text("2\t9\t7\t5\t3\t1\n-1\t4\t4\t4\t4\t4\n")
    (batch,) = make(tiny_series, normalize=True).batches("test")
    series = batch.inputs[..., 0]
    torch.testing.assert_close(series.mean(0), torch.zeros(2))
    torch.testing.assert_close(series[:, 0].var(correction=0), torch.tensor(1.0))
    assert torch.equal(series[:, 1], torch.zeros(5))


def test_truncated_archive_is_refused(tiny_series):
    path = tiny_series / "Tiny_TRAIN.tsv"
    (tiny_series / "Tiny_TRAIN.tsv.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    with pytest.raises(DataError, match="damaged"):
        make(tiny_series)


def test_short_series_end_at_the_last_step(tmp_path):
    (tmp_path / "a").write_text("1\t4\t6\tNaN\tNaN\n2\t1\t2\t3\t4\n")
    labels, values = read_table(tmp_path / "a")
    assert labels == ["1", "2"]
    series = torch.from_numpy(values).unsqueeze(-1)
    assert filled(series, False).squeeze(-1).tolist() == [[5, 5, 4, 6], [1, 2, 3, 4]]
    scaled = filled(series, True).squeeze(-1)
    # The variance is that of the values, not of what is put before them.
    assert scaled[0].tolist() == [0, 0, -1, 1]
    torch.testing.assert_close(scaled[1].square().mean(), torch.tensor(1.0))


def test_files_must_belong_together(tiny_series):
    test = tiny_series / "Tiny_TEST.tsv"
    test.write_text("3\t9\t7\t5\t3\t1\n")
    with pytest.raises(DataError, match="label 3, which training never saw"):
        make(tiny_series)
    test.write_text("2\t9\t7\t5\t3\n")
    with pytest.raises(DataError, match="different lengths"):
        make(tiny_series)


def test_labels_are_numbers(tiny_series):
    (tiny_series / "Tiny_TEST.tsv").write_text("2.0\t9\t7\t5\t3\t1\n-1.0e0\t1\t2\t4\t8\t16\n")
    assert make(tiny_series).splits["test"].labels.tolist() == [1, 0]


def test_sizes_are_those_of_the_manifest(tiny_series):
    header = "dataset\ttrain\ttest\tclasses\tlength\n"
    manifest = tiny_series / "MANIFEST.tsv"
    manifest.write_text(header + "Other\t9\t9\t9\t9\nTiny\t3\t2\t2\t5\n")
    make(tiny_series)
    manifest.write_text(header + "Tiny\t3\t4\t2\t5\n")
    with pytest.raises(DataError, match=r"Tiny is damaged: test is 2, .* says 4"):
        make(tiny_series)


def test_validation_only_where_there_is_enough(tiny_series, monkeypatch):
    monkeypatch.setattr(ucr, "VALIDATION_FROM", 10)
    rows = "".join(f"{i % 2}\t{i}\t1\n" for i in range(10))
    (tiny_series / "Many_TRAIN.tsv").write_text(rows)
    (tiny_series / "Many_TEST.tsv").write_text(rows)
    task = make(tiny_series, "Many")
    assert task.has_validation
    assert [len(task.splits[s]) for s in ("train", "validation", "test")] == [8, 2, 10]
    seen = torch.cat([task.splits[s].sequences[:, 0, 0] for s in ("train", "validation")])
    assert sorted(seen.tolist()) == list(range(10))


def test_folds_are_parts_of_the_training_series_with_each_labels_share(tiny_series):
    labels = [0] * 7 + [1] * 4 + [2]
    rows = "".join(f"{label}\t{i}\t1\n" for i, label in enumerate(labels))
    for split in ("TRAIN", "TEST"):
        (tiny_series / f"Folds_{split}.tsv").write_text(rows)
    seen = []
    for fold in range(ucr.FOLDS):
        task, other = (make(tiny_series, "Folds", fold=fold, seed=seed) for seed in (0, 1))
        held, rest = (task.splits[s].sequences[:, 0, 0].tolist() for s in ("validation", "train"))
        assert sorted(held + rest) == list(range(12))
        assert len(held) == 4
        assert all(sum(labels[int(i)] == c for i in held) >= n for c, n in ((0, 2), (1, 1)))
        assert other.splits["validation"].sequences[:, 0, 0].tolist() == held
        assert task.has_validation
        seen += held
    assert sorted(seen) == list(range(12))
    for fold in (-1, 3):
        with pytest.raises(UsageError, match=f"fold must be from 0 to 2, not {fold}"):
            UCRSeries.check_options({"dataset": "Folds", "normalize": True, "fold": fold})


def test_a_fold_without_series_is_refused(tiny_series):
    (tiny_series / "Tiny_TRAIN.tsv").write_text("-1\t1\t2\t3\t4\t5\n2\t5\t4\t3\t2\t1\n")
    make(tiny_series, fold=1)
    with pytest.raises(DataError, match="2 training series are too few for 3 folds"):
        make(tiny_series, fold=2)


def test_mask_says_what_was_measured(tiny_series):
    (tiny_series / "Tiny_TEST.tsv").write_text("2\tNaN\t7\tNaN\t3\t2\n-1\t1\t2\t4\tNaN\tNaN\n")
    with pytest.raises(DataError, match="--mask"):
        make(tiny_series)
    series, classes = read_series(DataFolder(tiny_series.parent), "Tiny", mask=True)
    given = {"normalize": True, "seed": 0, "dtype": torch.float64, "mask": True}
    task = UCRSeries(series, classes, 2, **given)
    assert task.input_size == 2
    values, present = next(iter(task.batches("test"))).inputs.unbind(-1)
    assert present.t().tolist() == [[0, 1, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert torch.equal(values[present == 0], torch.zeros(4))
    torch.testing.assert_close(values.sum(0), torch.zeros(2))
    torch.testing.assert_close((values.square().sum(0) / 3), torch.ones(2))


def test_files_of_different_lengths_with_a_mask_or_as_ts(tiny_series):
    (tiny_series / "Tiny_TEST.tsv").write_text("2\t9\t7\t5\n-1\t1\t2\t4\n")
    with pytest.raises(DataError, match=r"5 and 3.*variable_length_datasets_adjusted.*--mask"):
        make(tiny_series)
    series, _ = read_series(DataFolder(tiny_series.parent), "Tiny", mask=True)
    assert series["test"].sequences[:, :2].isnan().all()
    assert series["test"].sequences[0, 2:, 0].tolist() == [9, 7, 5]
    (tiny_series / "Other_TRAIN.ts").write_text("1,2,3:0\n4,5:1\n")
    (tiny_series / "Other_TEST.ts").write_text("1,2,3,4:0\n4,5:1\n")
    (batch,) = make(tiny_series, "Other").batches("test")
    assert batch.inputs[..., 0].t().tolist() == [[1, 2, 3, 4], [4.5, 4.5, 4, 5]]
    assert len(make(tiny_series, "Other").splits["train"].sequences[0]) == 4


def test_words_as_labels_of_a_ts_file(tiny_series):
    (tiny_series / "Words_TRAIN.ts").write_text("@data\n1,2,3:normal\n4,5,6:abnormal\n4,5,6:1_0\n")
    (tiny_series / "Words_TEST.ts").write_text("@data\n1,2,3:normal\n")
    task = make(tiny_series, "Words")
    assert task.splits["train"].labels.tolist() == [2, 1, 0]
    assert task.splits["test"].labels.tolist() == [2]
    (tiny_series / "Words_TEST.ts").write_text("@data\n1,2,3:odd\n")
    with pytest.raises(DataError, match="label odd, which training never saw"):
        make(tiny_series, "Words")


def test_missing_or_impossible_names(tiny_series):
    with pytest.raises(DataError, match=r"Nine_TRAIN.tsv.*Nine_TEST.tsv.*never fetched"):
        make(tiny_series, "Nine")
    for name, message in (("../Tiny", "not the name"), (None, "needs the name")):
        with pytest.raises(UsageError, match=message):
            UCRSeries.check_options({"dataset": name, "normalize": True, "fold": None})


def test_real_series(real_data):
    for name, sizes in (("CBF", (30, 900, 3, 128)), ("ArrowHead", (36, 175, 3, 251))):
        series, classes = read_series(real_data, name)
        train, test = series["train"].sequences, series["test"].sequences
        assert (len(train), len(test), classes, train.shape[1]) == sizes


@pytest.mark.parametrize("ending", [".txt", ".csv", ".ts", ""])
def test_other_endings_are_found(tiny_series, ending):
    expected = next(iter(make(tiny_series).batches("test"))).inputs
    for split in ("TRAIN", "TEST"):
        path = tiny_series / f"Tiny_{split}.tsv"
        text = path.read_text()
        if ending == ".ts":
            rows = [line.split("\t") for line in text.splitlines()]
            text = "".join(f"{','.join(row[1:])}:{row[0]}\n" for row in rows)
        path.with_suffix(ending).write_text(text)
        path.unlink()
    assert torch.equal(next(iter(make(tiny_series).batches("test"))).inputs, expected)
