from spectral_triton.experiments.studies.archive import UCR_LENGTHS
from spectral_triton.experiments.tasks.storage import read_intact


def test_series_lengths_are_those_of_the_archive(real_data):
    text = read_intact(real_data.places("ucr")[0] / "MANIFEST.tsv").decode()
    rows = [line.split("\t") for line in text.splitlines()]
    name, length = rows[0].index("dataset"), rows[0].index("length")
    assert {row[name]: int(row[length]) for row in rows[1:]} == UCR_LENGTHS
