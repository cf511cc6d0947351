"""Few images for the weights: by hand, on the terminal, and on the page."""

import pytest

from nas_moreau.config import SearchConfig
from nas_moreau.report.indicators import indicators
from nas_moreau.runs.history import Stage
from nas_moreau.search.few_images import few_images
from nas_moreau.search.stage import search


def settings(**changes):
    return SearchConfig(**{"epochs": 10, "steps_per_epoch": 100, "batch_size": 32, "method": "darts1"} | changes)


def test_few_images_by_hand():
    found = few_images(1350, settings())
    assert (found.images, found.prone) == (1350, True) and found.passes == pytest.approx(32000 / 1350)
    assert "1,350" in str(found) and "24 times" in str(found) and "search.method=moreau" in str(found)
    assert not few_images(1350, settings(method="moreau")).prone
    assert few_images(1350, settings(method="darts2+beta")).prone
    # one pass an epoch: 10 epochs of 42 batches
    assert few_images(1350, settings(steps_per_epoch=None)) is None
    assert few_images(1350, settings(steps_per_epoch=None, epochs=11)).passes == pytest.approx(11 * 42 * 32 / 1350)
    assert few_images(2501, settings()) is None and few_images(2500, settings()) is not None
    assert few_images(1350, settings(epochs=4)) is None


@pytest.mark.parametrize(("method", "level"), [("darts1", "watch"), ("moreau", "good")])
def test_terminal_and_page_name_it(tiny_config, tiny_data, tmp_path, method, level):
    search(
        tiny_config(f"search.method={method}", "search.epochs=1", "search.steps_per_epoch=70"), tmp_path, data=tiny_data
    )
    assert "images train the weights" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    (found,) = [sign for sign in indicators(Stage(tmp_path, "search")) if "Images" in sign.name]
    assert found.level == level and found.value.startswith("27,")
