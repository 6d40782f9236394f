"""What the processes of a run compare of each other's data; that they do is in tests/settings/test_launch.py."""

from __future__ import annotations

import json

from datasets import Dataset, load_dataset

from hfrlhf.runs.processes import fingerprint


def test_a_fingerprint_is_that_of_the_rows(tmp_path):
    rows = [{"prompt": f"text {i}", "label": i} for i in range(1500)]
    plain = fingerprint(Dataset.from_list(rows))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_file = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    assert fingerprint(from_file) == plain and plain.startswith("1,500 rows")
    shuffled = Dataset.from_list(rows).shuffle(seed=1)
    changed = Dataset.from_list([*rows[:-1], {"prompt": "text 1499", "label": 0}])
    others = [fingerprint(data) for data in (shuffled, changed, Dataset.from_list(rows[:-1]))]
    assert len({plain, *others}) == 4
    assert fingerprint(shuffled.sort("label")) == plain
