"""Where parameters are used: the autograd graph of a forward pass, walked from its outputs.

A parameter is what its *uses* make of it, and not what the module is called that holds it. A use is a
node one of whose operands leads to the parameter through views alone: the product ``x W'`` of a layer,
of a gate, of a projection; a convolution; the gain of a normalisation. The graph of an update is that of
the one before as a rule, and then everything below is looked up by :attr:`Graph.key`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from acktr.kfac import nodes

_RESHAPES = frozenset(
    f"{name}Backward0" for name in ("View", "UnsafeView", "ReshapeAlias", "ToCopy", "Alias")
)


# Slots that hold weights; of products of batches they hold data as often.
_WEIGHTS = frozenset({"right", "kernel", "table", "gain", "shift"})
_BATCHED = frozenset({"BmmBackward0", "BaddbmmBackward0"})


class Graph(NamedTuple):
    """The nodes below some outputs, in an order that two equal graphs share.

    :param nodes: each once
    :param inputs: of each: the indices of the nodes that feed it, -1 for none, and which of their
        outputs
    :param key: equal for equal graphs over the same parameters, whatever the sizes of their activations;
        begins with the indices of the outputs
    :param outputs: how many there are
    """

    nodes: list[Node]
    inputs: list[list[tuple[int, int]]]
    key: tuple[Hashable, ...]
    outputs: int


def trace(outputs: Sequence[Tensor]) -> Graph:
    """Walk the graph below outputs that require gradients."""
    index: dict[Node, int] = {}
    order: list[Node] = []
    inputs: list[list[tuple[int, int]]] = []
    key: list[Hashable] = []
    for tensor in outputs:
        root = tensor.grad_fn or get_gradient_edge(tensor).node
        if root not in index:
            index[root] = len(order)
            order.append(root)
        key.append(index[root])
    for node in order:  # which grows meanwhile
        of_node: list[tuple[int, int]] = []
        kind = type(node)
        key.append(kind)
        for child, output in node.next_functions:
            if child is None:
                of_node.append((-1, 0))
                continue
            place = index.get(child)
            if place is None:
                place = index[child] = len(order)
                order.append(child)
            of_node.append((place, output))
        key.extend(of_node)
        if not of_node and kind.__name__ == nodes.LEAF:
            key.append(id(nodes.parameter_of(node)))
        elif kind.__name__ in nodes.PLACED:
            key.append(nodes.placement(node))
        inputs.append(of_node)
    return Graph(order, inputs, tuple(key), len(outputs))


class View(NamedTuple):
    """Entries of a parameter, as :func:`torch.as_strided` of its contiguous form names them."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return math.prod(self.size)


class Site(NamedTuple):
    """One place in the graph where a parameter is used.

    :param parameter: which
    :param node: index of the node whose output is the use's
    :param slot: of its inputs, where the parameter lies
    :param role: as in :data:`acktr.kfac.nodes.ROLES`; ``"offset"`` for a bias added to the output of
        ``node``, ``"unknown"`` for whatever is none of them
    :param view: of the parameter that the operation sees
    :param times: how often it was repeated before
    :param after: shapes that the output of ``node`` is given by views, which tell its batch axis
    """

    parameter: Tensor
    node: int
    slot: int
    role: str
    view: View | None = None
    times: int = 1
    after: tuple[tuple[int, ...], ...] = ()


class Sites:
    """Finds the uses of parameters in a graph.

    :param graph: to look through
    :param wanted: whether a parameter matters
    :param batch: N
    """

    def __init__(self, graph: Graph, wanted: Callable[[Tensor], bool], batch: int) -> None:
        self._batch = max(batch, 1)
        self.graph = graph
        self.names = [nodes.name_of(node) for node in graph.nodes]
        self.leaves = {
            i: parameter
            for i, name in enumerate(self.names)
            if name == nodes.LEAF and wanted(parameter := nodes.parameter_of(graph.nodes[i]))
        }
        self._roots = {place for place in graph.key[: graph.outputs] if isinstance(place, int)}
        self._users: list[list[tuple[int, int, int]]] = [[] for _ in graph.nodes]
        for i, of_node in enumerate(graph.inputs):
            for slot, (child, output) in enumerate(of_node):
                if child >= 0:
                    self._users[child].append((i, slot, output))

    def __iter__(self) -> Iterator[Site]:
        for leaf, parameter in self.leaves.items():
            found = False
            for site in self._climb(leaf, parameter):
                found = True
                yield site
            if not found:  # the parameter itself is an output
                yield Site(parameter, leaf, 0, "unknown")

    def below(self, root: int) -> set[int]:
        """Return the nodes below one, itself included."""
        seen, stack = {root}, [root]
        while stack:
            for child, _ in self.graph.inputs[stack.pop()]:
                if child >= 0 and child not in seen:
                    seen.add(child)
                    stack.append(child)
        return seen

    def _climb(self, leaf: int, parameter: Tensor) -> Iterator[Site]:
        """Go up from a parameter through views, to whatever uses it."""
        stack: list[tuple[int, list[tuple[int, int]], int, bool]] = [(leaf, [], 1, False)]
        while stack:
            place, chain, times, spread = stack.pop()
            for user, slot, output in self._users[place]:
                # What has been spread is no view any more: the operand is as it was before.
                beyond = chain if place == leaf or spread or times > 1 else [*chain, (place, output)]
                name = self.names[user]
                if name in nodes.VIEWS and not spread and times == 1:
                    stack.append((user, beyond, 1, False))
                elif name == "ExpandBackward0" and not spread:
                    stack.append((user, beyond, times, True))
                elif (repeated := nodes.repeats(self.graph.nodes[user])) and len(repeated) == 1:
                    stack.append((user, beyond, repeated[0], spread))
                else:
                    yield self._site(parameter, user, slot, beyond, times, spread)

    def _site(
        self,
        parameter: Tensor,
        user: int,
        slot: int,
        chain: list[tuple[int, int]],
        times: int,
        spread: bool,
    ) -> Site:
        name = self.names[user]
        role = nodes.ROLES.get(name, {}).get(slot, "unknown")
        unknown = Site(parameter, user, slot, "unknown")
        view = (
            None
            if role == "unknown" or self._makes_weights(user, role)
            else self._view(parameter, chain)
        )
        if role == "table" and nodes.embedding(self.graph.nodes[user]) is None:
            return unknown
        if view is None or (times > 1 and role not in ("gain", "shift")):
            return unknown
        node = user
        if role in ("left", "right"):
            if not self._multiplies(user, slot) or (spread and len(view.size) != 2):
                return unknown
            role = f"spread {role}" if spread else role
        elif spread and role not in ("factor", "term"):
            return unknown
        elif role == "gate":
            product = self._product_below(user, slot - 3, through=nodes.VIEWS)
            role, node = ("offset", product) if product is not None else ("unknown", user)
        elif role == "offset" and not self._is_bias(user, view):
            return unknown
        elif role == "term":
            if not nodes.is_plain_sum(self.graph.nodes[user]) and slot:
                return unknown
            product = None if spread else self._product_below(user, 1 - slot)
            if product is not None and self._is_bias(product, view):
                role, node = "offset", product
        return Site(parameter, node, slot, role, view, times, self._shapes_above(node))

    def _makes_weights(self, place: int, role: str) -> bool:
        """Whether all that a node makes becomes the weights of other nodes, so that no row is a sample.

        As what is added to a weight, masks it, or is multiplied to one of lower rank. What lies on the
        right of a product may be data all the same, such as the nodes of a graph, or those of a
        contrast: then its rows are as many as samples.
        """
        seen, stack = {place}, [place]
        certain = False
        while stack:
            at = stack.pop()
            if at in self._roots:
                return False
            for user, slot, _ in self._users[at]:
                above = self.names[user]
                if nodes.ROLES.get(above, {}).get(slot) in _WEIGHTS and above not in _BATCHED:
                    turned = self.names[at] in ("TBackward0", "TransposeBackward0")
                    certain = certain or turned or nodes.ROLES[above][slot] != "right"
                elif above in nodes.PRODUCTS:
                    return False
                elif user not in seen:
                    seen.add(user)
                    stack.append(user)
        if role not in ("left", "right"):
            return certain
        rows = nodes.output_shapes(self.graph.nodes[place])[0][-2 if role == "right" else -1 :][0]
        return rows != self._batch if certain else bool(rows % self._batch)

    def _multiplies(self, user: int, slot: int) -> bool:
        """Whether a product is one of a parameter with something that is none, without a coefficient."""
        name, inputs = self.names[user], self.graph.inputs[user]
        if name in ("AddmmBackward0", "BaddbmmBackward0", "AddmvBackward0"):
            slots, plain = (1, 2), bool(nodes.saved(self.graph.nodes[user], "alpha") == 1)
        else:
            slots, plain = (0, 1), True
        other = inputs[slots[0] + slots[1] - slot][0]
        while other >= 0 and self.names[other] in nodes.VIEWS:
            other = self.graph.inputs[other][0][0]
        if other < 0 or self.names[other] != nodes.LEAF:
            return plain
        return plain and not isinstance(nodes.parameter_of(self.graph.nodes[other]), nn.Parameter)

    def _is_bias(self, product: int, view: View) -> bool:
        """Whether a vector is added along the last axis of a product, or a convolution's channels."""
        shape, name = nodes.output_shapes(self.graph.nodes[product])[0], self.names[product]
        scaled = name in ("AddmmBackward0", "AddmvBackward0")
        if scaled and nodes.saved(self.graph.nodes[product], "beta") != 1:
            return False
        channels = shape[1] if name == "ConvolutionBackward0" else shape[-1]
        return len(view.size) == 1 and view.size[0] == channels and name != "BaddbmmBackward0"

    def _product_below(self, user: int, slot: int, through: frozenset[str] = _RESHAPES) -> int | None:
        """Return the product that feeds a node through views, and nothing else on the way."""
        at, _ = self.graph.inputs[user][slot]
        while at >= 0:
            if through is _RESHAPES and len(self._users[at]) > 1:
                return None
            name = self.names[at]
            if name in nodes.PRODUCTS and name != "ConvolutionBackward0":
                return at
            if name not in through:
                return None
            at, _ = self.graph.inputs[at][0]
        return None

    def _shapes_above(self, node: int) -> tuple[tuple[int, ...], ...]:
        """Return what a node's output is reshaped to, if that is all that is done to it."""
        shapes = []
        for user, _, _ in self._users[node]:
            if self.names[user] in _RESHAPES:
                shapes.append(nodes.output_shapes(self.graph.nodes[user])[0])
        return tuple(shapes)

    def _view(self, parameter: Tensor, chain: Sequence[tuple[int, int]]) -> View | None:
        """Return where in a parameter the end of a chain of views lies, ``None`` if at no such place."""
        shape = tuple(parameter.shape)
        links = [(self.graph.nodes[i], output) for i, output in chain]
        moving = [link for link in links if nodes.name_of(link[0]) not in nodes.CASTS]
        if not moving:
            return whole(shape)
        if len(moving) == 1 and nodes.name_of(moving[0][0]) == "TBackward0" and len(shape) == 2:
            return View(shape[::-1], (1, shape[1]))
        size = nodes.output_shapes(links[-1][0])[links[-1][1]]
        count = math.prod(size)
        # Numbers of entries, sent down to where they come from: the parameter's layout is in the answer.
        numbers = torch.arange(1, count + 1, dtype=torch.float64).view(size)
        for node, output in reversed(links):
            numbers = nodes.pull(node, output, numbers)
        flat = numbers.reshape(-1)
        places = flat.nonzero().squeeze(-1)
        if numbers.shape != parameter.shape or len(places) != count:
            return None
        origin = torch.empty(count, dtype=torch.long)
        entries = flat[places].long() - 1
        if not torch.equal(entries.sort().values, torch.arange(count)):
            return None
        origin[entries] = places
        return _strided(origin.view(size))


@functools.lru_cache(maxsize=1024)  # it is asked several times for each weight in each step
def whole(shape: tuple[int, ...]) -> View:
    """Return the view of all of a tensor."""
    return View(shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))))


def _strided(places: Tensor) -> View | None:
    """Return places in memory as a strided view, ``None`` if they are not one."""
    size = tuple(places.shape)
    offset = int(places.flatten()[0])
    stride, expected = [], torch.full(size, offset)
    for axis, length in enumerate(size):
        step = int(places.select(axis, min(1, length - 1)).flatten()[0]) - offset if length > 1 else 0
        stride.append(step)
        along = [1] * len(size)
        along[axis] = length
        expected = expected + (torch.arange(length) * step).view(along)
    return View(size, tuple(stride), offset) if torch.equal(expected, places) else None
