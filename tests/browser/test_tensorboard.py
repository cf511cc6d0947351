"""A real TensorBoard server on a finished smoke run, opened in a browser: each page shows what was written for it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(browser, smoke_run):
    """The address that `nas-moreau watch` prints."""
    command = [sys.executable, "-m", "nas_moreau", "watch", str(smoke_run), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    limit, said = time.monotonic() + 60, []
    while time.monotonic() < limit:
        line = process.stderr.readline()
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
            break
    else:
        raise AssertionError(f"watch printed no address: {said}")
    wait_until_served(found[0], limit)
    yield found[0]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def wait_until_served(address, limit):
    """Waits until TensorBoard answers: `watch` prints the address before."""
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < limit, address
            time.sleep(0.1)


def only_here(browser, server):
    asked = [address for address in browser.requests() if not address.startswith(("data:", "blob:"))]
    assert asked and all(address.startswith(server) for address in asked), asked


def test_scalars(browser, server):
    browser.open(f"{server}/#timeseries")
    browser.wait("document.querySelectorAll('scalar-card').length > 1")
    browser.wait("document.querySelectorAll('scalar-card svg path, scalar-card canvas').length > 1")
    text = browser.text()
    for run in ("search/tensorboard", "retrain/tensorboard"):
        assert run in text
    for group in ("accuracy", "final", "loss", "optimizer", "resources", "stability"):
        assert re.search(rf"\b{group}\s+\d+ cards", text), group
    found = re.findall(r"\b([a-z_]+)\s+\d+ cards", text)
    assert found[0] == "accuracy" and found == sorted(found)
    only_here(browser, server)


def test_images(browser, server):
    browser.open(f"{server}/#images")
    seen = (
        "[...(function all(n) { return [...n.querySelectorAll('*')].flatMap(c => [c, ...(c.shadowRoot ? "
        "all(c.shadowRoot) : [])]); })(document)].filter(c => c.nodeName === 'IMG' && c.naturalWidth > 200)"
    )
    browser.wait(f"{seen}.length >= 3")
    text = browser.text()
    for name in ("cell", "errors/confusion_matrix", "errors/worst_images", "softmax_weights", "training_images"):
        assert name in text
    only_here(browser, server)


def test_graphs(browser, server):
    browser.open(f"{server}/#graphs")
    text = browser.wait_for("Main Graph")
    for name in ("stem", "normal", "reduce", "classifier"):  # the boxes of the retrained network
        assert name in browser.wait_for(name), text
    only_here(browser, server)


def test_the_custom_layout(browser, server):
    browser.open(f"{server}/#custom_scalars")
    text = browser.wait_for("Moreau envelope")
    for category in ("Search", "Is the cell sound?", "Moreau envelope", "Retraining"):
        assert category in text
    # each chart found its curves: four losses in the search's first one
    browser.wait_for("Matches (4)")
    limit = time.monotonic() + 40
    while "Matches (0)" in browser.text():  # they load one after the other
        assert time.monotonic() < limit, "A chart has no curve."
        time.sleep(0.2)
    assert not [said for said in browser.complaints() if "domain" in said or "rror" in said]
    only_here(browser, server)


def test_the_text_page_has_command_configuration_and_verdict(browser, server):
    browser.open(f"{server}/#text")
    text = browser.wait_for("tag: about/text_summary")
    limit = time.monotonic() + 40
    while text.count("tag: about/text_summary") < 3 or "partial_channels" not in text:  # search, retraining, whole run
        assert time.monotonic() < limit, text[:2000]
        time.sleep(0.2)
        text = " ".join(browser.text().split())
    only_here(browser, server)


def shown(number):
    return f"{number:#.5g}"


def test_hparams(browser, server, smoke_run):
    browser.open(f"{server}/#hparams")
    text = browser.wait_for("final/test_accuracy")
    for name in ("search.method", "retrain.channels", "final/held_out_accuracy", "final/parameters"):
        assert name in text
    found = json.loads((smoke_run / "result.json").read_text())
    browser.wait_for(found["retrain"]["digest"])
    # one row for the whole run, none for its stages
    text = browser.wait_for(shown(found["retrain"]["test_accuracy"]))
    assert text.count(shown(found["retrain"]["test_accuracy"])) == 1
    assert text.count(shown(found["search"]["held_out_accuracy"])) == 1
    only_here(browser, server)
