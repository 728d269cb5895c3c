import gzip

import pytest
import torch

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks import ucr
from spectral_triton.experiments.tasks.storage import DataFolder
from spectral_triton.experiments.tasks.ucr import UCRSeries, filled, read_series, read_table


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("1\n", "no rows"),
        ("1;2;3\n", "no rows"),
        ("1\t2\t3\n1\t2\n", "row 2 has 2 columns, row 1 has 3"),
        ("1\t2\t3\n1\t2\t3\t4\n", "row 2 has 4 columns"),
        ("1\t2\t3\n1\n", "row 2 has 1 columns"),
        ("1\t2\t3\n\n1\t2\n", "row 3 has 2 columns, row 1 has 3"),
        ("1\t2\tx\n", "row 1.*'x'"),
        ("1\t2\t1_0\n", "row 1.*'1_0'"),
        ("1\t\t2\n", "row 1: could not convert"),
        ("1\t2\tNaN\t3\n", "row 1.*missing.*variable_length_datasets_adjusted"),
        ("a\t2\t3\n", "row 1.*'a'"),
        ("NaN\t2\t3\n", "row 1.*label"),
        ("1\t2\tinf\n", "row 1: a value inside"),
        ("1\tNaN\t3\n", "row 1: a value inside"),
        ("1\tNaN\tNaN\n", "row 1: the series has no values"),
        ("1\t2\té\n", "row 1.*'é'"),
    ],
)
def test_damaged_table_is_refused(tmp_path, text, message):
    (tmp_path / "a").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a")


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


def test_missing_or_impossible_names(tiny_series):
    with pytest.raises(DataError, match=r"Nine_TRAIN.tsv.*Nine_TEST.tsv.*never fetched"):
        make(tiny_series, "Nine")
    for name, message in (("../Tiny", "not the name"), (None, "needs the name")):
        with pytest.raises(UsageError, match=message):
            UCRSeries.check_options({"dataset": name, "normalize": True})


def test_real_series(real_data):
    for name, sizes in (("CBF", (30, 900, 3, 128)), ("ArrowHead", (36, 175, 3, 251))):
        series, classes = read_series(real_data, name)
        train, test = series["train"].sequences, series["test"].sequences
        assert (len(train), len(test), classes, train.shape[1]) == sizes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("A.tsv", "1\t2\t3.5\n-1\t0\t4\n\n"),
        ("A.tsv", "\ufeff1\t2\t3.5\n-1\t0\t4\n"),
        ("A.tsv", "1\t2\t3.5\t\r\n-1\t0\t4\t\r\n  \r\n"),
        ("A.csv", "1,2,3.5\n-1,0,4"),
        ("A.txt", "  1.0   2.0  3.5\n -1.0   0  4\n"),
        ("A.txt", "1, 2, 3.5,\n-1, 0, 4,\n"),
        ("A.ts", "# a comment\n@problemName A\n@data\n2,3.5:1\n0,4:-1\n"),
    ],
)
def test_tables_as_people_have_them(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    labels, values = read_table(path)
    assert [float(label) for label in labels] == [1, -1]
    assert values.tolist() == [[2, 3.5], [0, 4]]


def test_shorter_series_of_a_ts_file_end_at_the_last_step(tmp_path):
    path = tmp_path / "A.ts"
    path.write_text("@data\n1,2,3:0\n4,5:1\n6,?,?:1\n")
    _, values = read_table(path)
    assert str(values.tolist()) == "[[1.0, 2.0, 3.0], [nan, 4.0, 5.0], [nan, nan, 6.0]]"
    path.write_text("@data\n1,2:3,4:0\n")
    with pytest.raises(DataError, match="one series a line"):
        read_table(path)


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
