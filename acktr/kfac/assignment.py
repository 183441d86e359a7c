"""Which parameter belongs to which block, by what is done with it in the graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from acktr.kfac import nodes
from acktr.kfac.forms import Form, by_rows, form_of
from acktr.kfac.graph import Graph, Site, whole

PRODUCT_ROLES = frozenset(
    {"left", "right", "spread left", "spread right", "kernel", "bilinear", "table"}
)
_ELEMENTWISE = frozenset({"gain", "shift", "factor", "term"})


class Spec(NamedTuple):
    """What a block is of: enough to build it anew, from plain containers.

    :param name: dotted name of the module, or of the parameter
    :param group: index of the parameter group
    :param params: their names in the block, and their dotted names in the model
    :param form: of the weight of a Kronecker block; ``None`` for a diagonal one
    """

    name: str
    group: int
    params: tuple[tuple[str, str], ...]
    form: Form | None


class Task(NamedTuple):
    """A use that takes part in the statistics of a block.

    :param site: where
    :param param: the name in the block of the parameter that it is read for
    :param groups: of a packed weight, see :class:`acktr.kfac.uses.Used`
    :param form: of the part of a weight that it multiplies with
    """

    site: Site
    param: str
    groups: tuple[int, int] | None = None
    form: Form | None = None


class Planned(NamedTuple):
    """A block and the uses of its parameters in one graph.

    :param spec: the block
    :param tasks: its uses; none where all that is known of the parameter is its gradient
    """

    spec: Spec
    tasks: list[Task]


class Parameters:
    """The parameters of a model by name, holder and group.

    :param module: the model
    :param groups: the parameters of each group
    :param is_diagonal: whether the parameter of a name is to have a diagonal block
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Iterable[Sequence[Tensor]],
        is_diagonal: Callable[[str], bool],
    ) -> None:
        self.module = module
        self._is_diagonal = is_diagonal
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.by_name = dict(module.named_parameters())
        self.group_of = {id(p): i for i, params in enumerate(groups) for p in params}
        modules = dict(module.named_modules())
        self.modules = {name: i for i, name in enumerate(modules)}
        self._by_module = modules
        self.order = {name: i for i, name in enumerate(self.by_name)}

    def holder(self, parameter: Tensor) -> tuple[str, str]:
        """Return the name of the module that holds a parameter, and the parameter's name there."""
        module, _, local = self.names[id(parameter)].rpartition(".")
        return module, local

    def layer_of(self, parameter: Tensor) -> str:
        """Return what a message calls a parameter: the layer whose weight or bias it is, or its name."""
        module, local = self.holder(parameter)
        return module if local in ("weight", "bias") else self.names[id(parameter)]

    def is_diagonal(self, parameter: Tensor) -> bool:
        """Whether a parameter is to have a diagonal block, whatever is done with it."""
        return self._is_diagonal(self.names[id(parameter)])

    def sibling(self, parameter: Tensor, local: str) -> nn.Parameter | None:
        """Return another parameter of the same module."""
        module, _ = self.holder(parameter)
        return self.by_name.get(f"{module}.{local}" if module else local)

    def type_of(self, name: str) -> type[nn.Module]:
        """Return the type of a module."""
        return type(self._by_module[name])

    def rows_of(self, parameter: Tensor) -> int:
        """Return how many rows of a packed weight belong together: queries, keys, values."""
        module, local = self.holder(parameter)
        attention = isinstance(self._by_module[module], nn.MultiheadAttention)
        return parameter.shape[0] // 3 if attention and local == "in_proj_weight" else 0

    def place(self, spec: Spec) -> tuple[int, int]:
        """Return where a block stands among the others: layers first, in the order of the model."""
        if spec.name in self.modules and spec.params[0][0] != "param":
            return 0, self.modules[spec.name]
        return 1, self.order[spec.params[0][1]]

    def is_own(self, name: str) -> bool:
        """Whether a module is one of the user's containers, whose bare parameters surprise nobody."""
        child = self._by_module[name]
        return not type(child).__module__.startswith("torch.") and any(child.children())


class Planner:
    """Makes blocks of the uses found in one graph.

    :param parameters: of the model
    :param graph: where the uses are
    :param sites: the uses
    :param bare: ids of parameters of which the gradient alone is to be looked at
    """

    def __init__(
        self, parameters: Parameters, graph: Graph, sites: Iterable[Site], bare: set[int]
    ) -> None:
        self._parameters = parameters
        self._graph = graph
        self._bare = bare
        self._sites: dict[int, list[Site]] = {}
        for site in sites:
            of_param = self._sites.setdefault(id(site.parameter), [])
            # The gates of all time steps lead to one product.
            if not any((s.node, s.role, s.view) == (site.node, site.role, site.view) for s in of_param):
                of_param.append(site)
        self._weight_at = {
            s.node: s.parameter
            for own in self._sites.values()
            for s in own
            if s.role in PRODUCT_ROLES
        }  # fmt: skip
        self._taken: set[int] = set()
        self.strange: list[Tensor] = []  # parameters in operations that are not known

    def plan(self) -> list[Planned]:
        """Return the blocks in their order."""
        planned = []
        for sites in self._sites.values():
            if all(s.role in PRODUCT_ROLES for s in sites) and not self._diagonal_by_name(sites):
                planned += self._product(sites)
        for sites in self._sites.values():
            offset = all(s.role == "offset" for s in sites) and not self._diagonal_by_name(sites)
            if id(sites[0].parameter) not in self._taken and offset:
                planned += self._bias(sites)
        for sites in self._sites.values():
            if id(sites[0].parameter) not in self._taken:
                planned += self._diagonal(sites)
        return sorted(planned, key=lambda p: self._parameters.place(p.spec))

    def _diagonal_by_name(self, sites: Sequence[Site]) -> bool:
        return self._parameters.is_diagonal(sites[0].parameter)

    def _spec(self, params: Mapping[str, Tensor], name: str, form: Form | None) -> Spec:
        self._taken.update(id(p) for p in params.values())
        names, group_of = self._parameters.names, self._parameters.group_of
        group = next(group_of[id(p)] for p in params.values())
        return Spec(name, group, tuple((key, names[id(p)]) for key, p in params.items()), form)

    def _product(self, sites: list[Site]) -> list[Planned]:
        """Plan the Kronecker block of a weight, if all its uses agree on its matrix."""
        weight = sites[0].parameter
        forms = [form_of(s, self._graph.nodes[s.node]) for s in sites]
        if id(weight) in self._bare or any(f is None for f in forms):
            return []
        known = [f for f in forms if f is not None]
        rows = self._parameters.rows_of(weight)
        spans: list[tuple[int, int] | None] = [None] * len(sites)
        form = known[0]
        covers = form.view is not None and form.view.entries == weight.numel()
        if rows or any(f != form for f in known) or not covers:
            packed = by_rows(known, weight.numel(), rows)
            if packed is None:
                return []
            form, spans = packed[0], list(packed[1])
        params: dict[str, Tensor] = {"weight": weight}
        bias = self._bias_of(sites, form, spans)
        name, local = self._parameters.holder(weight)
        if bias is not None:
            params["bias"] = bias
        elif local == "weight":
            sibling = self._parameters.sibling(weight, "bias")
            if sibling is not None and self._waits(sibling, weight):
                params["bias"] = sibling
        plain = all(self._parameters.holder(p) == (name, key) for key, p in params.items())
        spec = self._spec(params, name if plain else self._parameters.names[id(weight)], form)
        tasks = [Task(s, "weight", span) for s, span in zip(sites, spans, strict=True)]
        return [Planned(spec, tasks)]

    def _waits(self, sibling: Tensor, of: Tensor) -> bool:
        """Whether a frozen parameter will belong to a block once it is thawed."""
        group_of = self._parameters.group_of
        same = group_of.get(id(sibling)) == group_of[id(of)]
        waits = same and not sibling.requires_grad and id(sibling) not in self._taken
        return waits and not self._parameters.is_diagonal(sibling)

    def _bias_of(
        self, sites: list[Site], form: Form, spans: Sequence[tuple[int, int] | None]
    ) -> Tensor | None:
        """Return the parameter that is added to each use of a weight and to nothing else."""
        at = {s.node: span for s, span in zip(sites, spans, strict=True)}
        if len(at) < len(sites):
            return None
        for candidates in self._sites.values():
            bias, views = candidates[0].parameter, {s.node: s.view for s in candidates}
            if views.keys() != at.keys() or len(views) < len(candidates) or id(bias) in self._bare:
                continue
            if any(s.role != "offset" for s in candidates) or self._diagonal_by_name(candidates):
                continue
            if self._apart(bias, sites[0].parameter):
                continue
            unit = form.shape[-2]
            expected = {
                node: (bias.numel(), 0) if span is None else ((span[1] - span[0]) * unit, span[0] * unit)
                for node, span in at.items()
            }
            sizes = {n: (v.entries, v.offset) for n, v in views.items() if v is not None}
            rows = bias.numel() == unit * (form.groups[0] if form.groups else 1)
            if sizes == expected and rows and all(s.role != "left" or self._vector(s) for s in sites):
                return bias
        return None

    def _vector(self, site: Site) -> bool:
        """Whether a weight on the left has its outputs along the last axis all the same."""
        return nodes.name_of(self._graph.nodes[site.node]) in (
            "MvBackward0",
            "AddmvBackward0",
            "LinearBackward0",
        )

    def _apart(self, one: Tensor, other: Tensor) -> bool:
        group_of = self._parameters.group_of
        return group_of[id(one)] != group_of[id(other)]

    def _bias(self, sites: list[Site]) -> list[Planned]:
        """Plan the block of a bias whose weight is frozen, or belongs to another block."""
        bias = sites[0].parameter
        if id(bias) in self._bare or any(s.view != whole(tuple(bias.shape)) for s in sites):
            return []
        kinds = {self._groups_at(s) for s in sites}
        if len(kinds) > 1:
            return []
        (groups,) = kinds
        form = Form((*([groups] if groups > 1 else []), bias.numel() // groups, 0), None)
        params: dict[str, Tensor] = {"bias": bias}
        name, local = self._parameters.holder(bias)
        weight = self._parameters.sibling(bias, "weight") if local == "bias" else None
        if weight is not None and self._waits(weight, bias):
            params = {"weight": weight, "bias": bias}
        alone = weight is not None and id(weight) not in self._parameters.group_of
        if local != "bias" or not (alone or len(params) > 1):
            name = self._parameters.names[id(bias)]
        return [Planned(self._spec(params, name, form), [Task(s, "bias") for s in sites])]

    def _groups_at(self, site: Site) -> int:
        node = self._graph.nodes[site.node]
        is_convolution = nodes.name_of(node) == "ConvolutionBackward0"
        return nodes.convolution(node).groups if is_convolution else 1

    def _diagonal(self, sites: list[Site]) -> list[Planned]:
        """Plan a diagonal block; weight and bias of a normalisation have one together."""
        parameter = sites[0].parameter
        strange = any(s.role == "unknown" for s in sites)
        bare = strange or id(parameter) in self._bare
        if strange and id(parameter) not in self._bare:
            self.strange.append(parameter)
        if not bare and all(s.role in ("gain", "shift") for s in sites):
            return [self._normalization(parameter)]
        name = self._parameters.names[id(parameter)]
        spec = self._spec({"param": parameter}, name, None)
        tasks = []
        for s in sites if not bare else []:
            form = form_of(s, self._graph.nodes[s.node]) if s.role in PRODUCT_ROLES else None
            if s.role in PRODUCT_ROLES and form is None:
                return [Planned(spec, [])]
            tasks.append(Task(s, "param", form=form))
        return [Planned(spec, tasks)]

    def _normalization(self, parameter: Tensor) -> Planned:
        name, local = self._parameters.holder(parameter)
        params: dict[str, Tensor] = {}
        for key in ("weight", "bias") if local in ("weight", "bias") else ():
            other = self._parameters.sibling(parameter, key)
            if other is None or id(other) in self._taken:
                continue
            sites = self._sites.get(id(other), [])
            same = bool(sites) and all(s.role in ("gain", "shift") for s in sites)
            joins = same and not self._apart(other, parameter)
            if other is parameter or joins or self._waits(other, parameter):
                params[key] = other
        if not params:
            params, name = {"param": parameter}, self._parameters.names[id(parameter)]
        elif self._apart_from_sibling(parameter, params):
            name = self._parameters.names[id(parameter)]
        tasks = [Task(s, key) for key, p in params.items() for s in self._sites.get(id(p), [])]
        return Planned(self._spec(params, name, None), tasks)

    def _apart_from_sibling(self, parameter: Tensor, params: Mapping[str, Tensor]) -> bool:
        """Whether a part of the layer has another block, which has the layer's name."""
        if "weight" in params:
            return False
        weight = self._parameters.sibling(parameter, "weight")
        return weight is not None and id(weight) in self._parameters.group_of


def warn_of(parameters: Parameters, strange: Sequence[Tensor], known: set[str]) -> None:
    """Name what has a diagonal block because nobody knows what is done with it, each module once.

    :param strange: the parameters
    :param known: modules that were named before; those that are named now are added
    """
    for parameter in strange:
        name, local = parameters.holder(parameter)
        if name in known or (parameters.is_own(name) and parameter.ndim < 2):
            continue
        known.add(name)
        if parameters.is_own(name):
            name = f"{name}.{local}" if name else local
        what = parameters.type_of(parameters.holder(parameter)[0]).__name__
        warnings.warn(
            f"K-FAC has no Kronecker block for {name or 'the model'} ({what}): what leads to its "
            "parameters is more than views and products, and they get a diagonal block from gradients "
            "of the batch.",
            UserWarning,
            stacklevel=5,
        )


def check_groups(module: nn.Module, params: Sequence[Any]) -> None:
    """Refuse a group that holds nothing, a parameter twice, one of another model, or parts of one.

    :param module: the whole model
    :param params: the group's parameters
    :raises ValueError: says which
    """
    if not params:
        raise ValueError("A parameter group, or the module itself, holds no parameters.")
    if len({id(p) for p in params}) < len(params):
        raise ValueError("A parameter group holds a parameter more than once.")
    sharded = [name for name, p in module.named_parameters() if hasattr(p, "device_mesh")]
    if sharded:
        raise ValueError(
            f"Parameter {sharded[0]!r} is sharded (DTensor), as by fully_shard: K-FAC needs whole "
            "parameters on each process, as under DistributedDataParallel."
        )
    if {id(p) for p in params} - {id(p) for p in module.parameters()}:
        raise ValueError("A parameter group holds parameters that are not parameters of the module.")
