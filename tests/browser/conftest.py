"""A headless Chromium driven over a pipe by the DevTools protocol: no package is needed beside the browser itself."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 40.0  # seconds
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Browser:
    """One browser with one page; `events` holds what the page reported: console, errors, requests."""

    def __init__(self, program: str, profile: Path):
        read, self._write = os.pipe()
        self._read, write = os.pipe()

        def inherit() -> None:  # the protocol's two ends are descriptors 3 and 4
            kept = os.dup(read), os.dup(write)
            os.dup2(kept[0], 3)
            os.dup2(kept[1], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=inherit,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        os.set_blocking(self._read, False)
        self._text, self._count, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the answer to a command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            for found in self._messages():
                if found.get("id") == self._count:
                    assert "error" not in found, f"{method}: {found.get('error')}"
                    return found["result"]
                self.events.append(found)
            time.sleep(0.01)
        raise TimeoutError(f"{method} was not answered.")

    def _messages(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._read, 1 << 20):
                self._text += part
        while b"\0" in self._text:
            message, _, self._text = self._text.partition(b"\0")
            yield json.loads(message)

    def open(self, address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Opens an address in a window of that size and waits until it has loaded."""
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression in the page; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE) -> None:
        """Waits until a JavaScript expression is true."""
        limit = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < limit, f"The page never came to {condition}; it shows: {self.text()[:500]}"
            time.sleep(0.1)

    def wait_for(self, text: str) -> str:
        """Waits until the page shows a text; returns all that it shows, blanks made one."""
        limit = time.monotonic() + PATIENCE
        while text not in (seen := " ".join(self.text().split())):
            assert time.monotonic() < limit, f"The page never showed {text!r}, but: {seen[:500]}"
            time.sleep(0.2)
        return seen

    def text(self) -> str:
        """Returns the text of the page, shadow trees included."""
        return self.run(
            "(function seen(node) { let found = ''; for (const child of node.childNodes) {"
            " if (child.nodeType === 3) found += child.data + ' ';"
            " else if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) found += seen(child); }"
            " return found + (node.shadowRoot ? seen(node.shadowRoot) : ''); })(document.documentElement)"
        )

    def picture(self, path: Path, whole: bool = False) -> None:
        """Writes the window, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def print(self, path: Path) -> None:
        """Writes the page as it is printed on A4, as PDF."""
        sheet = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        path.write_bytes(base64.b64decode(sheet["data"]))

    def complaints(self) -> list[str]:
        """Returns the page's errors and warnings since it was opened."""
        self.run("1")  # whatever was reported before has arrived
        found = []
        for event in self.events:
            method, said = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(said["exceptionDetails"].get("exception", said["exceptionDetails"])))
            elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(str(said["args"]))
            elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                found.append(said["entry"]["text"] + " " + said["entry"].get("url", ""))
        return found

    def requests(self) -> list[str]:
        """Returns the addresses that the page asked for since it was opened."""
        self.run("1")
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [said["request"]["url"] for said in sent]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("There is no chromium on this machine (Debian: apt-get install chromium).")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the preset `smoke`, with fewer steps."""
    from nas_moreau import pipeline as main_job
    from nas_moreau.config import load_config

    folder = tmp_path_factory.mktemp("runs") / "smoke"
    few = ["search.steps_per_epoch=6", "derive.trained.candidates=2", "derive.trained.steps=8"]
    few += ["retrain.epochs=3", "retrain.steps_per_epoch=10"]
    main_job.run(load_config("smoke", None, few), folder)
    return folder


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison page of three short runs of one configuration, whose folders and classes have hostile names."""
    from nas_moreau import pipeline as main_job
    from nas_moreau.config import load_config
    from nas_moreau.data import load_data
    from nas_moreau.report import write_several_runs

    short = ["search.epochs=2", "search.steps_per_epoch=2", "derive.rule=space", "logging.tensorboard=false"]
    short += ["retrain.epochs=2", "retrain.steps_per_epoch=2"]
    place = tmp_path_factory.mktemp("seeds")
    names = ["<script>alert(1)</script>".replace("/", "|"), "x" * 200, "\U0001f600 'q' \"&amp; #%41?"]
    classes = ["<script>document.title='hit'</script>", "y" * 300, "\U0001f600" * 20]
    for seed, name in enumerate(names):
        config = load_config("smoke", None, [*short, f"seed={seed}"])
        data = load_data("shapes", train_images=400)
        hostile = dataclasses.replace(data, classes=(*classes, *data.classes[3:]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main_job, "load_images", lambda config, hostile=hostile: hostile)
            main_job.run(config, place / name)
    return write_several_runs([place / name for name in names], place / "comparison.html")


@pytest.fixture(scope="session")
def wrong_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short hyper-cleaning of images whose classes have hostile names."""
    from nas_moreau.data import load_data
    from nas_moreau.problems.tasks import solve_on_data

    data = load_data("shapes", image_size=8, train_images=400)
    classes = ["<script>document.title='hit'</script>", "y" * 300, "\U0001f600" * 20, *data.classes[3:]]
    folder = tmp_path_factory.mktemp("labels") / "x"
    hostile = dataclasses.replace(data, classes=tuple(classes))
    solve_on_data("hyper-cleaning", {"steps": 5, "device": "cpu"}, folder, data=hostile)
    return folder


@pytest.fixture(scope="session")
def solved_problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem with a known answer, by a method that has all curves."""
    from nas_moreau.problems.tasks import solve_task

    folder = tmp_path_factory.mktemp("problem") / "x"
    solve_task("quadratic", {"n": 40, "method": "moreau", "steps": 50}, folder)
    return folder
