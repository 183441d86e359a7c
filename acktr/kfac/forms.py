"""How a weight lies as the matrix ``(out, in)`` that its Kronecker factors multiply from both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from acktr.kfac import nodes
from acktr.kfac.graph import Site, View, whole


class Form(NamedTuple):
    """An arrangement of the entries of a parameter.

    :param shape: of the matrix, ``(out, in)`` or ``(G, out, in)``, without a column for the bias
    :param view: whose entries, one after the other, fill the matrix; ``None`` where only a bias is known
    :param words: whether the inputs are one-hot, so that their factor is a diagonal
    """

    shape: tuple[int, ...]
    view: View | None
    words: bool = False

    @property
    def groups(self) -> tuple[int, ...]:
        """``(G,)``, or nothing."""
        return self.shape[:-2]

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """Arrange a tensor shaped like the parameter."""
        assert self.view is not None
        if tuple(tensor.shape) == self.shape and self._in_order:
            return tensor
        if self._in_order:
            return tensor.reshape(self.shape)
        if self._transposed(tensor):
            return tensor.mT
        return tensor.contiguous().as_strided(*self.view).reshape(self.shape)

    def from_matrix(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo :meth:`to_matrix`.

        :param shape: of the parameter
        """
        assert self.view is not None
        if self._in_order:
            return matrix if matrix.shape == shape else matrix.reshape(tuple(shape))
        if self._transposed(matrix) and tuple(shape) == self.shape[::-1]:
            return matrix.mT
        tensor = matrix.new_zeros(tuple(shape))
        tensor.as_strided(*self.view).copy_(matrix.reshape(self.view.size))
        return tensor

    @property
    def _in_order(self) -> bool:
        return self.view is not None and self.view == whole(self.view.size)

    def _transposed(self, tensor: Tensor) -> bool:
        assert self.view is not None
        return (
            tensor.ndim == 2
            and len(self.shape) == 2
            and self.view == View(self.shape, (1, self.shape[0]))
        )

    def fits(self, count: int) -> bool:
        """Whether the matrix holds each of so many entries once."""
        view = self.view
        if view is None:
            return True
        last = view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True))
        return math.prod(self.shape) == view.entries == count and last == count - 1

    def plain(self) -> list[Any]:
        """Return the form as lists of numbers."""
        view = (
            None
            if self.view is None
            else [list(self.view.size), list(self.view.stride), self.view.offset]
        )
        return [list(self.shape), view, self.words]

    @classmethod
    def of_plain(cls, values: Sequence[Any]) -> Form:
        """Undo :meth:`plain`."""
        shape, view, words = values
        of_view = None if view is None else View(tuple(view[0]), tuple(view[1]), int(view[2]))
        form = cls(tuple(shape), of_view, bool(words))
        return form if of_view is None else _form(form.shape, of_view, form.words)


def _form(shape: tuple[int, ...], view: View, words: bool = False) -> Form:
    """Return a form in the words that two equal ones share."""
    # What a step along an axis of length 1 would be is nobody's business, and views differ in it.
    usual = whole(view.size).stride
    stride = tuple(u if n == 1 else s for n, s, u in zip(view.size, view.stride, usual, strict=True))
    view = view._replace(stride=stride)
    return Form(shape, whole(shape) if view == whole(view.size) else view, words)


def of_legacy(shape: Sequence[int], columns_of_a: Sequence[int], has_bias: bool) -> Form:
    """Return the form of a weight in a state that says nothing of forms, as states once did.

    They were of linear layers, convolutions and embeddings: the input factor tells which.

    :param shape: of the weight
    :param columns_of_a: shape of the input factor; empty where there was none yet
    :param has_bias: whether a bias is its last coordinate
    """
    shape, A = tuple(shape), tuple(columns_of_a)
    if len(A) == 1 and len(shape) == 2:
        return _form(shape[::-1], View(shape[::-1], (1, shape[1])), words=True)
    columns = math.prod(shape[1:])
    # Factors of groups are as wide as the matrix, those of a factor that was split are narrower.
    if len(shape) > 2 and len(A) == 3 and A[-1] == columns + has_bias:
        return _form((A[0], shape[0] // A[0], columns), whole(shape))
    return _form((shape[0], columns), whole(shape))


def form_of(site: Site, node: Node) -> Form | None:
    """Return the matrix of the weight that a node multiplies with; ``None`` where there is none."""
    view = site.view
    if view is None:
        return None
    if site.role == "kernel":
        return _of_kernel(view, nodes.convolution(node))
    meta = torch.empty_strided(view.size, view.stride, device="meta")
    if site.role == "bilinear":
        shape: tuple[int, ...] = (view.size[0], view.size[1] * view.size[2])
    elif site.role == "table":
        if view != whole(tuple(site.parameter.shape)):
            return None
        meta = meta.mT
        shape = tuple(meta.shape)
    elif meta.ndim == 1:  # a matrix times a vector
        shape = (1, view.size[0])
    else:
        if site.role.endswith("right"):
            meta = meta.mT
        if meta.ndim == 3 and len(meta) == 1:
            meta = meta[0]
        shape = tuple(meta.shape)
    placed = View(tuple(meta.shape), tuple(meta.stride()), view.offset)
    return _form(shape, placed, words=site.role == "table")


def _of_kernel(view: View, convolution: nodes.Convolving) -> Form:
    """``(out, in/G, *kernel)``, or ``(in, out/G, *kernel)`` of a transposed one, by output channels."""
    (first, *size), (step, *stride), groups = view.size, view.stride, convolution.groups
    size, stride = [groups, first // groups, *size], [first // groups * step, step, *stride]
    if convolution.transposed:
        size[1], size[2], stride[1], stride[2] = size[2], size[1], stride[2], stride[1]
    shape: tuple[int, ...] = (groups, size[1], math.prod(size[2:]))
    if groups == 1:
        size, stride, shape = size[1:], stride[1:], shape[1:]
    return _form(shape, View(tuple(size), tuple(stride), view.offset))


def by_rows(forms: Sequence[Form], count: int, unit: int) -> tuple[Form, list[tuple[int, int]]] | None:
    """Return one form of groups of rows for uses of different rows of one packed weight.

    :param forms: of the uses, each a matrix of its own
    :param count: entries of the parameter
    :param unit: rows of a group at most, 0 for as many as fit
    :return: the form, and for each use the first of its groups and the one after its last; ``None``
        where the uses are not such rows
    """
    first = forms[0]
    if first.view is None or first.words:
        return None
    columns = first.shape[-1]
    spans = []
    for form in forms:
        view = form.view
        if view is None or form.words or len(view.size) != 2 or view.size[1] != columns:
            return None
        if view.stride != (columns, 1) or view.offset % columns:
            return None
        start = view.offset // columns
        spans.append((start, start + view.size[0]))
    total = count // columns
    if total * columns != count:
        return None
    unit = math.gcd(unit, total, *(x for span in spans for x in span))
    groups = total // unit
    if not 1 < groups <= max(16, 2 * len({*spans})):
        return None
    form = Form((groups, unit, columns), whole((groups, unit, columns)))
    return form, [(start // unit, end // unit) for start, end in spans]
