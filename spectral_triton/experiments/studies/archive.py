"""The data sets of the UCR archive that are compared, and what others report for them."""

from __future__ import annotations

from spectral_triton.experiments.studies.plan import Published

UCR_LENGTHS = {
    "Adiac": 176,
    "ArrowHead": 251,
    "Beef": 470,
    "CBF": 128,
    "Car": 577,
    "Coffee": 286,
    "ECG200": 96,
    "ECGFiveDays": 136,
    "Earthquakes": 512,
    "FaceAll": 131,
    "FaceFour": 350,
    "FiftyWords": 270,
    "Fish": 463,
    "GunPoint": 150,
    "Ham": 431,
    "Herring": 512,
    "ItalyPowerDemand": 24,
    "Lightning2": 637,
    "Lightning7": 319,
    "Meat": 448,
    "MedicalImages": 99,
    "OSULeaf": 427,
    "OliveOil": 570,
    "Plane": 144,
    "ShapeletSim": 500,
    "SwedishLeaf": 128,
    "SyntheticControl": 60,
    "Trace": 275,
    "TwoLeadECG": 82,
    "Wine": 234,
}
"""Data sets of the archive and the number of values in each of their series."""

AEON = "files of aeon 1.6.0, the archive's own split, mean of these 30"
CLASSIFIERS = (
    Published("HIVE-COTE 2", "90.29 %", AEON),
    Published("WEASEL 2.0", "90.32 %", AEON),
    Published("InceptionTime", "88.72 %", AEON),
    Published("FreshPRINCE", "86.58 %", AEON),
)
