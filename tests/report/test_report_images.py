"""What the report says about the images: counts of each class, statistics, and what was odd about them."""

import json

from nas_moreau.report.read_run import Stage
from nas_moreau.report.record import _images

DATA = {
    "name": "folder:pets", "classes": ["cat", "<dog>"], "train": [1200, 30], "test": [12, 3], "channels": 3,
    "image_size": [24, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "notes": ["Sizes differ & were changed."],
}  # fmt: skip


def test_images_of_a_run(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    html = _images(Stage(tmp_path, "retrain"))
    for text in ("folder:pets", "1,230 for training, 15 for the test", "3 x 24 x 32", "0.1000, 0.2000, 0.3000", "1,200",
                 "&lt;dog&gt;", "Sizes differ &amp; were changed."):  # fmt: skip
        assert text in html, text
    assert "<dog>" not in html


def test_many_classes_are_cut_and_runs_of_earlier_versions_say_nothing(tmp_path):
    assert _images(Stage(tmp_path, "retrain")) == ""
    names = [f"class {i}" for i in range(100)]
    (tmp_path / "data.json").write_text(json.dumps(DATA | {"classes": names, "train": [1] * 100, "test": [1] * 100}))
    html = _images(Stage(tmp_path, "retrain"))
    assert "class 39<" in html and "class 40<" not in html and "60 more classes" in html
