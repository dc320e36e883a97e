"""The JSON of a report keeps the fields of version 0.1, for the scripts that read it.

``report_0_1.json`` is one that version 0.1 wrote. rnncore reads no reports itself.
"""

import json
from pathlib import Path

import numpy as np

import rnncore

MADE = json.loads(Path(__file__).with_name("report_0_1.json").read_text())
# Renamed with schema version 2: one number for each layer is now one for each [layer][direction].
RENAMED = {"/jacobian/widths"}


def fields(value, path=""):
    """The paths of all keys; of a list, those of its entries."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}/{key}"
            yield from fields(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, path)


def test_every_field_of_version_0_1_is_still_there():
    report = rnncore.diagnose(
        rnncore.RNN(2, 2, rng=0), np.random.default_rng(0).standard_normal((4, 1, 2)), level="deep"
    )
    today = json.loads(report.to_json())
    assert MADE["schema_version"] == 1
    assert today["schema_version"] == 2
    assert set(fields(MADE)) - set(fields(today)) == RENAMED
    assert today["verdict"]["label"] == MADE["verdict"]["label"]
