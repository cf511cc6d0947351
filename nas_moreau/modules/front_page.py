"""The page of a front of quality against cost: the chart, the table, the chosen modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nas_moreau.modules.front import RANDOM, SEARCHED, SINGLE, Front, Point
from nas_moreau.report.charts import front_chart
from nas_moreau.report.format import duration
from nas_moreau.report.html import figure, header, page, paragraph, section, table

NAMES = {SEARCHED: "searches from a shared start", RANDOM: "random choices", SINGLE: "searches from scratch"}


def render_front(front: Front, name: str) -> str:
    """Returns the HTML of a front.

    Args:
        front: What `pareto` found.
        name: Of its folder.
    """
    metric = front.knee.metric is not None
    quality = "metric" if metric else "loss"

    def points(found: Sequence[Point]) -> list[tuple[float, float]]:
        return [
            (point.cost, point.loss if point.metric is None else point.metric)
            for point in found
            if math.isfinite(point.error)
        ]

    curves = {NAMES[kind]: (points(front.best(kind)), points(front.of(kind))) for kind in front.kinds()}
    chart = front_chart("front", curves, front.cost, f"held-out {quality}")
    knee = front.knee
    summary = (
        f"The knee of the front has {knee.cost:.4g} {front.cost} and a held-out {quality} of "
        f"{knee.loss if knee.metric is None else knee.metric:.4g}."
    )
    facts = [f"{len(front.of('front'))} searches of {front.steps} steps after {front.start_steps}"]
    volumes = [
        (NAMES[kind], f"{front.hypervolume(kind):.3f}", str(len(front.of(kind))), duration(front.seconds.get(kind)))
        for kind in front.kinds()
    ]
    head = (front.cost, "loss", "metric", "", "choices (of others: what differs from the knee's)")
    parts = [
        header("front", name, facts, summary),
        section(
            "chart",
            "Quality against cost",
            figure("Every module trained alike", chart, "lines join what nothing beats"),
        ),
        section("table", "The front", table(head, front.rows(), numbers=(0, 1, 2))),
        section(
            "volumes",
            "What it is worth",
            paragraph("The hypervolume is the share of the box of all points that those of a kind dominate.")
            + table(("kind", "hypervolume", "points", "search time"), volumes, numbers=(1, 2, 3)),
        ),
    ]
    return page(f"{name} · front", parts)
