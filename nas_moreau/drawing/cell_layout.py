"""Layout of a cell: a layered graph from left to right, without an external program.

States are in even columns by the longest path that leads to them, the operations into a state in the column before it.
The value of a state runs to its readers along one line, which has its own place in every column that it passes: lines
bend only in the empty gaps between columns, so no line ever meets a box. The order within the columns is found by
barycentres and exchanges (Sugiyama, Tagawa, Toda 1981), the heights by least squares under minimum distances.
"""

from __future__ import annotations

import copy
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

OPERATION_HEIGHT, STATE_SIZE, PORT_WIDTH, PORT_HEIGHT = 26.0, 36.0, 78.0, 44.0
_PASS_HEIGHT, _BETWEEN, _GAP = 6.0, 11.0, 40.0


@dataclass
class Item:
    """A box, or a place where a line passes a column.

    Attributes:
        kind: "state", "operation", "output" or "pass".
        column: The column, from the left.
        state: The state of a box or of a line; -1 for the output.
        edge: Index of the operation's edge; -1 for all others.
        width: Width of the box.
        height: Height of the box.
        x: Horizontal centre.
        y: Vertical centre.
    """

    kind: str
    column: int
    state: int = -1
    edge: int = -1
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0


@dataclass
class Link:
    """A line over one gap: from the right side of `start` to the left side of `end`, at height `arrival` there."""

    start: Item
    end: Item
    arrival: float = 0.0


@dataclass
class Layout:
    """Boxes and lines of a cell; the drawing spans (0, 0) to (width, height)."""

    items: list[Item] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def lay_out(
    edges: Sequence[tuple[str, int, int]], inputs: int, concat: Sequence[int], widths: Sequence[float]
) -> Layout:
    """Returns the layout of a cell.

    Args:
        edges: (operation, from, to) of the cell, states numbered from the inputs on.
        inputs: Number of input states.
        concat: States that the output consists of.
        widths: Width of the operation box of every edge.
    """
    # a search draws a cell several times an epoch, and mostly one that it has drawn before
    columns, links = copy.deepcopy(_arrange(tuple((a, b) for _, a, b in edges), inputs, tuple(concat)))
    for item in (item for column in columns for item in column if item.kind == "operation"):
        item.width = widths[item.edge]
    return _place(columns, links)


@lru_cache(maxsize=64)
def _arrange(
    edges: tuple[tuple[int, int], ...], inputs: int, concat: tuple[int, ...]
) -> tuple[list[list[Item]], list[Link]]:
    """Returns the columns in their order, with all heights, and the links; the width of operations is not known yet."""
    columns, links = _graph(edges, inputs, concat)
    _order(columns, links)
    _heights(columns, links)
    return columns, links


def _graph(edges: Sequence[tuple[int, int]], inputs: int, concat: Sequence[int]) -> tuple[list[list[Item]], list[Link]]:
    last = max([inputs - 1, *concat, *(to for _, to in edges)])
    depth = dict.fromkeys(range(inputs), 0)
    for state in range(inputs, last + 1):
        depth[state] = 1 + max((depth[a] for a, b in edges if b == state), default=0)
    end = 2 * max(depth.values()) + 1
    columns: list[list[Item]] = [[] for _ in range(end + 1)]
    links: list[Link] = []
    states: dict[int, Item] = {}
    for state, level in depth.items():
        size = (PORT_WIDTH, PORT_HEIGHT) if state < inputs else (STATE_SIZE, STATE_SIZE)
        states[state] = Item("state", 2 * level, state, -1, *size)
    output = Item("output", end, width=PORT_WIDTH, height=PORT_HEIGHT)
    boxes = [Item("operation", 2 * depth[b] - 1, b, i, height=OPERATION_HEIGHT) for i, (_, b) in enumerate(edges)]
    for item in (*states.values(), *boxes, output):
        columns[item.column].append(item)

    passes: dict[tuple[int, int], Item] = {}

    def line_to(state: int, column: int) -> Item:
        """Returns the end of the line of `state` at `column`, extending it to there."""
        if column == states[state].column:
            return states[state]
        if (state, column) not in passes:
            before = line_to(state, column - 1)
            passes[state, column] = Item("pass", column, state, height=_PASS_HEIGHT)
            columns[column].append(passes[state, column])
            links.append(Link(before, passes[state, column]))
        return passes[state, column]

    for box, (a, b) in zip(boxes, edges):
        links.append(Link(line_to(a, box.column - 1), box))
        links.append(Link(box, states[b]))
    for state in sorted(set(concat)):
        links.append(Link(line_to(state, end - 1), output))
    return columns, links


def _order(columns: list[list[Item]], links: list[Link]) -> None:
    """Sorts every column in place so that few lines cross."""
    left: dict[int, list[Item]] = defaultdict(list)
    right: dict[int, list[Item]] = defaultdict(list)
    for link in links:
        left[id(link.end)].append(link.start)
        right[id(link.start)].append(link.end)
    draws = random.Random(0)
    fewest, best = math.inf, columns
    for attempt in range(10):
        tried = [list(column) for column in columns]
        if attempt:
            for column in tried:
                draws.shuffle(column)
        former: list[list[list[int]]] = []
        for sweep in range(10):
            forward = sweep % 2 == 0
            for number in range(len(tried)) if forward else reversed(range(len(tried))):
                near = left if forward else right
                other = number - 1 if forward else number + 1
                if not 0 <= other < len(tried):
                    continue
                tried[number] = _by_neighbours(tried[number], tried[other], near)
            _exchange(tried, left, right)
            crossings = _crossings(tried, right)
            if crossings < fewest:
                fewest, best = crossings, [list(column) for column in tried]
            former.append([[id(item) for item in column] for column in tried])
            if sweep > 1 and former[-1] == former[-3]:  # the next sweeps give these two orders again
                break
        if fewest == 0:
            break
    columns[:] = best
    if [item.state for item in columns[0]] > sorted(item.state for item in columns[0]):
        for column in columns:  # upside down there are as many crossings, and the inputs are in order
            column.reverse()


def _by_neighbours(column: list[Item], other: list[Item], near: dict[int, list[Item]]) -> list[Item]:
    """Returns a column in the order of the mean place of its items' neighbours in the other column."""
    rank = {id(item): i for i, item in enumerate(other)}
    wishes: list[float] = []
    for here, item in enumerate(column):
        places = [rank[id(n)] for n in near[id(item)]]
        wishes.append(sum(places) / len(places) if places else here)
    return [column[i] for i in sorted(range(len(column)), key=wishes.__getitem__)]


def _pair(a: Item, b: Item, near: dict[int, list[Item]], rank: dict[int, int]) -> int:
    """Returns the crossings between the lines of `a` and of `b` if `a` is above `b`."""
    above, below = near[id(a)], near[id(b)]
    if not above or not below:
        return 0
    ranks = [rank[id(n)] for n in below]
    if len(ranks) == 1:
        return sum([rank[id(m)] > ranks[0] for m in above])
    return sum([place > other for place in [rank[id(m)] for m in above] for other in ranks])


def _exchange(columns: list[list[Item]], left: dict[int, list[Item]], right: dict[int, list[Item]]) -> None:
    """Exchanges neighbours as long as that removes crossings."""
    rank = {id(item): i for column in columns for i, item in enumerate(column)}
    moved = True
    while moved:
        moved = False
        for column in columns:
            for i in range(len(column) - 1):
                a, b = column[i], column[i + 1]
                now = _pair(a, b, left, rank) + _pair(a, b, right, rank)
                if _pair(b, a, left, rank) + _pair(b, a, right, rank) < now:
                    column[i], column[i + 1] = b, a
                    rank[id(a)], rank[id(b)] = i + 1, i
                    moved = True


def _crossings(columns: list[list[Item]], right: dict[int, list[Item]]) -> int:
    rank = {id(item): i for column in columns for i, item in enumerate(column)}
    return sum(_pair(a, b, right, rank) for column in columns for i, a in enumerate(column) for b in column[i + 1 :])


def _heights(columns: list[list[Item]], links: list[Link]) -> None:
    """Sets `y` of every item: near the items that it is linked with, lines as straight as possible."""
    near: dict[int, list[tuple[Item, float]]] = defaultdict(list)
    for link in links:
        # a bend in a long line disturbs more than a bend beside a box
        weight = 8.0 if link.start.kind == link.end.kind == "pass" else 4.0 if link.end.kind == "pass" else 1.0
        near[id(link.start)].append((link.end, weight))
        near[id(link.end)].append((link.start, weight))
    for column in columns:
        y = 0.0
        for item in column:
            item.y = y + item.height / 2
            y += item.height + _BETWEEN
        for item in column:
            item.y -= (y - _BETWEEN) / 2
    for sweep in range(60):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wishes = []
            for item in column:
                total = sum(weight for _, weight in near[id(item)])
                wishes.append((sum(n.y * w for n, w in near[id(item)]) / total if total else item.y, total or 1.0))
            _settle(column, wishes)
        for line in _lines(links):
            _straighten(line, columns, near)


def _lines(links: list[Link]) -> list[list[Item]]:
    """Returns the lines that pass columns: for each state its places from left to right."""
    found: dict[int, list[Item]] = defaultdict(list)
    for link in links:
        if link.end.kind == "pass":
            found[link.end.state].append(link.end)
    return list(found.values())


def _straighten(line: list[Item], columns: list[list[Item]], near: dict[int, list[tuple[Item, float]]]) -> None:
    """Puts a whole line at one height, near the items that it is linked with, where its neighbours leave space."""
    low, high = -1e9, 1e9
    for item in line:
        column = columns[item.column]
        place = next(i for i, other in enumerate(column) if other is item)
        if place > 0:
            low = max(low, column[place - 1].y + _apart(column[place - 1], item))
        if place + 1 < len(column):
            high = min(high, column[place + 1].y - _apart(item, column[place + 1]))
    if low > high:
        return
    ends = [(n.y, w) for item in line for n, w in near[id(item)] if n.kind != "pass"]
    wish = sum(y * w for y, w in ends) / sum(w for _, w in ends)
    for item in line:
        item.y = min(high, max(low, wish))


def _apart(above: Item, below: Item) -> float:
    return above.height / 2 + _BETWEEN + below.height / 2


def _settle(column: list[Item], wishes: list[tuple[float, float]]) -> None:
    """Sets the heights nearest to the wishes that keep order and distance, by pooling adjacent violators."""
    offsets = [0.0]
    for above, below in pairwise(column):
        offsets.append(offsets[-1] + _apart(above, below))
    pools: list[list[float]] = []  # mean, weight, count
    for (wish, weight), offset in zip(wishes, offsets):
        pools.append([wish - offset, weight, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, weight_, count = pools.pop()
            pool = pools[-1]
            pool[0] = (pool[0] * pool[1] + mean * weight_) / (pool[1] + weight_)
            pool[1] += weight_
            pool[2] += count
    places = [mean for mean, _, count in pools for _ in range(int(count))]
    for item, place, offset in zip(column, places, offsets):
        item.y = place + offset


def _place(columns: list[list[Item]], links: list[Link]) -> Layout:
    """Sets `x` and the arrival heights, and shifts everything to begin at (0, 0)."""
    items = [item for column in columns for item in column]
    top = min(item.y - item.height / 2 for item in items)
    for item in items:
        item.y -= top
    arriving: dict[int, list[Link]] = defaultdict(list)
    for link in links:
        arriving[id(link.end)].append(link)
    for group in arriving.values():
        end = group[0].end
        group.sort(key=lambda link: link.start.y)
        step = min(9.0, (end.height - 12) / max(1, len(group) - 1))
        for i, link in enumerate(group):
            link.arrival = end.y + (i - (len(group) - 1) / 2) * step * (end.kind in ("state", "output"))
    x = 0.0
    for number, column in enumerate(columns):
        width = max((item.width for item in column), default=0.0)
        if number:
            steep = max((abs(k.arrival - k.start.y) for k in links if k.end.column == number), default=0.0)
            x += _GAP + min(40.0, 0.2 * steep)
        for item in column:
            item.x = x + width / 2
            if item.kind in ("pass", "operation"):
                item.width = width
        x += width
    return Layout(items, links, x, max(item.y + item.height / 2 for item in items))
