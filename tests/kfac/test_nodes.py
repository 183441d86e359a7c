"""The private names of torch's graph that K-FAC reads: a torch that calls them otherwise fails here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acktr.kfac import nodes
from acktr.kfac.graph import Sites, trace
from acktr.kfac.uses import read


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


# An operation, the node that it is in the graph, and the role of its only parameter.
OPERATIONS = {
    "addmm": (lambda x: F.linear(x, p(3, 4), torch.zeros(3, requires_grad=True)), "Addmm", "right"),
    "mm": (lambda x: x @ p(4, 3), "Mm", "right"),
    "mm-left": (lambda x: p(3, 5) @ x, "Mm", "left"),
    "bmm": (lambda x: torch.bmm(x.view(5, 1, 4), p(5, 4, 2)), "Bmm", "right"),
    "baddbmm": (
        lambda x: torch.baddbmm(torch.zeros(5, 1, 2), x.view(5, 1, 4), p(5, 4, 2)), "Baddbmm", "right"
    ),
    "mv": (lambda x: x @ p(4), "Mv", "right"),
    "addmv": (lambda x: torch.addmv(torch.zeros(5), x, p(4)), "Addmv", "right"),
    "conv1d": (lambda x: F.conv1d(x.view(1, 1, 20), p(2, 1, 3)), "Convolution", "kernel"),
    "conv2d": (lambda x: F.conv2d(x.view(1, 1, 5, 4), p(2, 1, 3, 3)), "Convolution", "kernel"),
    "conv-transposed": (
        lambda x: F.conv_transpose2d(x.view(1, 1, 5, 4), p(1, 2, 3, 3)), "Convolution", "kernel"
    ),
    "bilinear": (lambda x: F.bilinear(x, x, p(2, 4, 4)), "Trilinear", "bilinear"),
    "embedding": (lambda x: F.embedding(x.long() % 3, p(3, 2), padding_idx=1), "Embedding", "table"),
    "bag": (lambda x: F.embedding_bag(x.long() % 3, p(3, 2), mode="mean"), "EmbeddingBag", "table"),
    "layer-norm": (lambda x: F.layer_norm(x, (4,), p(4)), "NativeLayerNorm", "gain"),
    "group-norm": (lambda x: F.group_norm(x, 2, p(4)), "NativeGroupNorm", "gain"),
    "batch-norm": (
        lambda x: F.batch_norm(x, None, None, p(4), training=True), "NativeBatchNorm", "gain"
    ),
    "batch-norm-eval": (
        lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), p(4)), "NativeBatchNorm", "gain"
    ),
    "factor": (lambda x: x * p(4), "Mul", "factor"),
    "term": (lambda x: x + p(4), "Add", "term"),
    "difference": (lambda x: x - p(4), "Sub", "term"),
}  # fmt: skip


@pytest.mark.parametrize(("operation", "name", "role"), OPERATIONS.values(), ids=OPERATIONS)
def test_what_a_node_saved_is_read(operation, name, role):
    out = operation(torch.randn(5, 4))
    graph = trace([out])
    (site,) = [
        s for s in Sites(graph, lambda t: isinstance(t, nn.Parameter), batch=5) if s.role != "offset"
    ]
    node = graph.nodes[site.node]
    assert (nodes.name_of(node), site.role) == (f"{name}Backward0", role)
    use = read(node, site)
    assert all(isinstance(x, Tensor) for x in use.inputs)
    assert nodes.output_shapes(node)[0] == tuple(out.shape)


VIEWS = {
    "t": lambda w: w.t(),
    "mT": lambda w: w.mT,
    "transpose": lambda w: w.transpose(0, 1),
    "permute": lambda w: w.permute(1, 0),
    "view": lambda w: w.view(2, 12),
    "slice": lambda w: w[1:3],
    "strided": lambda w: w[::2, 1:],
    "narrow": lambda w: w.narrow(1, 2, 3),
    "split": lambda w: w.split(2)[1],
    "chunk": lambda w: w.chunk(3, 1)[2],
    "select": lambda w: w.view(2, 2, 6)[1],
    "unbind": lambda w: w.view(2, 2, 6).unbind(1)[1],
    "squeeze": lambda w: w.unsqueeze(0).squeeze(0),
    "clone": lambda w: w.mT.contiguous(),
    "cast": lambda w: w.to(torch.bfloat16),
    "diagonal": lambda w: w.view(2, 2, 6).diagonal(),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_of_a_parameter_is_where_the_graph_says(view):
    w = nn.Parameter(torch.arange(24.0).view(4, 6))
    operand = view(w)
    graph = trace([operand * torch.ones_like(operand)])
    (site,) = list(Sites(graph, lambda _: True, batch=99))
    assert site.role == "factor"
    places = w.detach().as_strided(*site.view)
    torch.testing.assert_close(places, operand.detach().to(places))


def test_what_is_no_view_is_none():
    w = nn.Parameter(torch.randn(4, 6))
    for made in (w.expand(3, 4, 6).exp(), w.sum(0), w.repeat(2, 1), w.exp(), torch.cat([w, w])):
        graph = trace([made.sin()])
        assert {s.role for s in Sites(graph, lambda _: True, batch=99)} == {"unknown"}


def test_another_name_is_said_loudly():
    out = torch.randn(5, 4) @ p(4, 3)
    with pytest.raises(
        RuntimeError, match=r"torch .* has no 'weight' in MmBackward0, which K-FAC reads"
    ):
        nodes.saved(out.grad_fn, "weight")
