import pytest

from spectral_triton.experiments.errors import DataError
from spectral_triton.experiments.tasks.series_table import read_table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("1\n", "no rows"),
        ("1;2;3\n", "no rows"),
        ("1\t2\t3\n1\t2\n", "row 2 has 2 columns, row 1 has 3; .*adjusted.*--mask"),
        ("1\t2\t3\n1\t2\t3\t4\n", "row 2 has 4 columns"),
        ("1\t2\t3\n1\n", "row 2 has 1 columns"),
        ("1\t2\t3\n\n1\t2\n", "row 3 has 2 columns, row 1 has 3"),
        ("1\t2\tx\n", "row 1.*'x'"),
        ("1\t2\t1_0\n", "row 1.*'1_0'"),
        ("1\t\t2\n", "row 1: a value inside the series is missing"),
        ("1\t?\t2\n", "row 1: a value inside the series is missing"),
        ("1\t2\tNaN\t3\n", "row 1.*missing.*variable_length_datasets_adjusted"),
        ("a\t2\t3\n", "row 1.*'a'"),
        ("NaN\t2\t3\n", "row 1.*label"),
        ("1\t2\tinf\n", "row 1: a value is infinite"),
        ("1\tNaN\t3\n", "row 1: a value inside"),
        ("1\tNaN\tNaN\n", "row 1: the series has no values"),
        ("1\t2\té\n", "row 1.*'é'"),
    ],
)
def test_damaged_table_is_refused(tmp_path, text, message):
    (tmp_path / "a").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a")


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
    for label in ("nan", "?"):
        path.write_text(f"@data\n1,2,3:{label}\n")
        with pytest.raises(DataError, match="row 2: the label is"):
            read_table(path)
    path.write_text("@data\n1,2,3:\n")
    with pytest.raises(DataError, match="has no label"):
        read_table(path)
    path.write_text("@data\n1,2:3,4:0\n")
    with pytest.raises(DataError, match="one series a line"):
        read_table(path)


def test_gaps_are_read_where_they_are_asked_for(tmp_path):
    path = tmp_path / "A.tsv"
    path.write_text("1\tNaN\t2\tNaN\t3\tNaN\n2\t1\t2\t3\t4\t5\n")
    with pytest.raises(DataError, match="row 1: a value inside the series is missing"):
        read_table(path)
    _, values = read_table(path, gaps=True)
    assert str(values[0].tolist()) == "[nan, nan, 2.0, nan, 3.0]"
    path.write_text("1,2,?,3\n2,1,,2,4\n1,5\n")
    _, values = read_table(path, gaps=True)
    assert str(values.tolist()) == (
        "[[nan, 2.0, nan, 3.0], [1.0, nan, 2.0, 4.0], [nan, nan, nan, 5.0]]"
    )
    for row, message in (("1\tinf\t2", "infinite"), ("1\tNaN\tNaN", "has no values")):
        path.write_text(row)
        with pytest.raises(DataError, match=message):
            read_table(path, gaps=True)
