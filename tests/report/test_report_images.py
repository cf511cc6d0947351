"""What the report says about the images: counts of each class, statistics, and what was odd about them."""

import json

from nas_moreau.report import write_report

DATA = {
    "name": "folder:pets",
    "classes": ["cat", "<dog>"],
    "train": [1200, 30],
    "test": [12, 3],
    "channels": 3,
    "image_size": [24, 32],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "notes": ["Sizes differ & were changed."],
}


def page_with(folder, data):
    (folder / "status.json").write_text(json.dumps({"stage": "retrain", "state": "running"}))
    if data is not None:
        (folder / "data.json").write_text(json.dumps(data))
    return write_report(folder).read_text()


def test_images_of_a_run(tmp_path):
    page = page_with(tmp_path, DATA)
    for text in (
        "folder:pets",
        "1,230",
        "3 x 24 x 32",
        "0.1000, 0.2000, 0.3000",
        "1,200",
        "&lt;dog&gt;",
        "Sizes differ &amp; were changed.",
    ):
        assert text in page, text
    assert "<dog>" not in page


def test_many_classes_are_cut_and_without_a_description_there_is_no_section(tmp_path):
    assert 'id="images"' not in page_with(tmp_path, None)
    names = [f"class {i}" for i in range(100)]
    page = page_with(tmp_path, DATA | {"classes": names, "train": [1] * 100, "test": [1] * 100})
    assert 'id="images"' in page and "class 39<" in page and "class 40<" not in page and "60 more classes" in page
