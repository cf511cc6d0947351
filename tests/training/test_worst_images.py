"""The misclassified images that a retraining draws: the right ones, worst first."""

import io
import math

import torch
from PIL import Image

from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.config import load_config
from nas_moreau.data import Augment, Data, Images, Part
from nas_moreau.training.evaluate import Misclassified, evaluate_model
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import retrain

# the true class is 0; the loss of logits (0, a) is log(1 + e^a)
LOGITS = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [0.0, 3.0]], device="cpu")


def model(x):
    return LOGITS[(x[:, 0, 0, 0] * 255).round().long()]


def images():
    pixels = torch.arange(5, dtype=torch.uint8, device="cpu").reshape(5, 1, 1, 1).expand(5, 1, 2, 2).contiguous()
    return Images(pixels, torch.zeros(5, dtype=torch.int64, device="cpu"))


def test_the_mistakes_of_the_highest_loss_come_first_and_equals_in_order():
    plain = Augment((0.0,), (1.0,))
    found = evaluate_model(model, Part.whole(images(), plain), 2, batch_size=2, worst=2)
    sure = 1 / (1 + math.exp(-3))
    assert [mistake[:3] for mistake in found.worst] == [(2, 0, 1), (4, 0, 1)]
    assert all(math.isclose(mistake.confidence, sure, rel_tol=1e-6) for mistake in found.worst)
    everything = evaluate_model(model, Part.whole(images(), plain), 2, batch_size=2, worst=9).worst
    assert [mistake.image for mistake in everything] == [2, 4, 1] and isinstance(everything[0], Misclassified)
    some = evaluate_model(model, Part(images(), torch.tensor([4, 0, 1], device="cpu"), plain), 2, worst=9)
    assert [mistake.image for mistake in some.worst] == [4, 1]
    without = evaluate_model(model, Part.whole(images(), plain), 2, batch_size=2)
    assert without.worst == () and without[:4] == found[:4]


def test_a_retraining_draws_them(tmp_path):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 8, 8), generator=draw, dtype=torch.uint8)
    both = Images(pixels, torch.arange(24, device="cpu") % 3)
    data = Data("tiny", ("a", "<b>", "\U0001f600" * 100), both, both, (0.5,) * 3, (0.25,) * 3)
    config = load_config(
        overrides=[
            "space=toy",
            "retrain.channels=2",
            "retrain.layers=3",
            "retrain.epochs=1",
            "retrain.steps_per_epoch=1",
            "retrain.batch_size=8",
            "retrain.augment.crop=1",
            "retrain.augment.cutout=0",
        ]
    )
    result = retrain(config, published_cell("DARTS_V2"), tmp_path / "run", data=data)
    assert result.test_accuracy < 1
    picture = Image.open(io.BytesIO((tmp_path / "run" / "worst.png").read_bytes()))
    wrong = round(24 * (1 - result.test_accuracy))
    assert picture.height > 70 * math.ceil(min(wrong, 20) / 10)


def test_an_old_drawing_is_removed_where_no_image_is_misclassified(tmp_path, tiny_config, make_data):
    old = tmp_path / "run" / "worst.png"
    hook = Hook(on_start=lambda job: old.write_bytes(b"of an earlier session"))
    result = retrain(
        tiny_config(), published_cell("DARTS_V2"), tmp_path / "run", data=make_data(classes=("all",)), hooks=[hook]
    )
    assert result.test_accuracy == 1 and not old.exists()


def test_an_image_whose_logits_are_not_numbers_is_misclassified(monkeypatch):
    """The largest of NaNs is the first: images of class 0 would count as right."""
    logits = LOGITS.clone()
    logits[0] = math.nan
    logits[3, 1] = math.nan
    monkeypatch.setitem(globals(), "LOGITS", logits)
    found = evaluate_model(model, Part.whole(images(), Augment((0.0,), (1.0,))), 2, worst=9)
    assert found.accuracy == 0.0 and math.isnan(found.loss) and found.confusion == [[0, 5], [0, 0]]
    assert {mistake.image for mistake in found.worst} == {0, 1, 2, 3, 4}
