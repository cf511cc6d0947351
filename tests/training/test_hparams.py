"""The row of a run on TensorBoard's HPARAMS page: the same columns for every stage, blank where one has no meaning."""

import pytest

from nas_moreau.training.hparams import log_hparams


class Page:
    """A monitor that keeps what it is given."""

    def hparams(self, values, metrics, step=0, blank=(), first=()):
        self.values, self.metrics, self.blank = values, metrics, set(blank)


@pytest.mark.parametrize("stage", ["search", "retrain", "run"])
def test_a_row_names_the_method_where_there_was_a_search(stage, tiny_config):
    page, config = Page(), tiny_config("search.method=darts1")
    log_hparams(page, config, stage, "digest", {"test_accuracy": 0.5})
    assert page.values["cell"] == "digest" and page.metrics["final/test_accuracy"] == 0.5
    # a random cell or a published one, which is only retrained, was not found by the method of the configuration
    assert page.values["method"] == ("-" if stage == "retrain" else "darts1")
    blank = {name.partition(".")[0] for name in page.blank}
    assert blank == {"search": {"retrain"}, "retrain": {"search"}, "run": set()}[stage]
