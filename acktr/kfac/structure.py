"""The blocks of an optimiser: found at the first update, and looked up while graphs repeat."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from acktr.kfac import nodes
from acktr.kfac.assignment import (
    PRODUCT_ROLES,
    Parameters,
    Planned,
    Planner,
    Spec,
    Task,
    check_groups,
    warn_of,
)
from acktr.kfac.blocks import Block, KroneckerBlock
from acktr.kfac.comm import Comm
from acktr.kfac.diagonal import DiagonalBlock
from acktr.kfac.ekfac import EigenvalueCorrectedBlock
from acktr.kfac.factors import BLOCK, WIDEST
from acktr.kfac.forms import Form, of_legacy
from acktr.kfac.graph import Graph, Sites, trace
from acktr.kfac.likelihood import OutputCotangent
from acktr.kfac.options import Curvature
from acktr.kfac.recurrent import LinearGaussianBlock, is_chain, is_recurrent
from acktr.kfac.uses import Layout

_LOG = logging.getLogger("acktr.kfac")
_MAX_KNOWN = 64  # graphs, before what is known of them is forgotten


class Known(NamedTuple):
    """What was found out of one graph.

    :param tasks: of each block that takes part
    :param alone: of each output, whether it is one number for all samples, which no layer feeds
    :param layouts: of uses whose samples had to be asked for, by block, task and shape; ``None`` where
        the rows are nobody's
    """

    tasks: list[tuple[Block, list[Task]]]
    alone: list[bool]
    layouts: dict[Hashable, Layout | None]


class Structure:
    """Finds the blocks of a model's parameters.

    :param module: the model
    :param options: how factors are made and inverted
    :raises TypeError: not a model
    :raises ValueError: what is said of layers names none
    """

    def __init__(self, module: Any, options: Curvature) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"KFAC needs the torch.nn.Module itself, not {type(module).__name__}: pass the model, "
                "and some of its parameters as param_groups."
            )
        self.module: nn.Module = module
        self.options = options
        options.check_names({*dict(module.named_modules()), *dict(module.named_parameters())})
        self.groups: list[list[nn.Parameter]] = []
        self.blocks: list[list[Block]] = []  # of each group
        self._known: dict[Hashable, Known] = {}
        self._warned: set[str] = set()
        self._parameters: Parameters | None = None
        self._without: list[list[nn.Parameter]] | None = None

    def add_group(self, params: Sequence[nn.Parameter]) -> None:
        """Take in another group.

        :raises ValueError: a parameter twice, or none of the model's
        """
        check_groups(self.module, params)
        self.groups.append(list(params))
        self.blocks.append([])
        self._forget()

    def _forget(self) -> None:
        self._known, self._parameters, self._without = {}, None, None

    @property
    def parameters(self) -> Parameters:
        """The model's parameters by name and group."""
        if self._parameters is None:
            self._parameters = Parameters(self.module, self.groups, self.options.is_diagonal)
        return self._parameters

    def __iter__(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(self.blocks)

    @property
    def diagonal_memory(self) -> bool:
        """Whether recurrent layers have diagonal blocks: mean squares of the gradients of batches.

        Cotangents have signs of their own for each sample, so that these are unbiased, whatever the
        steps of a sample have to do with each other.
        """
        return self.options.recurrent == "diagonal"

    def without_block(self, group: int) -> list[nn.Parameter]:
        """Return the parameters of a group that no captured pass has used so far."""
        if self._without is None:
            covered = {id(p) for block in self for p in block.all_params.values()}
            self._without = [[p for p in params if id(p) not in covered] for params in self.groups]
        return self._without[group]

    # ------------------------------------------------------------------ finding

    def find(self, pairs: Sequence[OutputCotangent], batch: int, comm: Comm) -> tuple[Graph, Known]:
        """Find the uses of all parameters below the outputs of a captured pass.

        :param batch: N
        :param comm: the processes that train the model; blocks that one of them finds are those of all
        """
        graph = trace([pair.output for pair in pairs])
        key = graph.key, tuple(pair.root is not None for pair in pairs)
        known = self._known.get(key)
        if not comm.alone and self._incomplete():
            known = None  # the others may have found what is missing here
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._analyse(graph, pairs, batch, comm)
            self._known[key] = known
        return graph, known

    def find_nothing(self, comm: Comm) -> None:
        """Take part in a search that other processes make, without a sample of one's own."""
        if not comm.alone and self._incomplete():
            for specs in comm.gather([]):
                self._adopt(specs)

    def _incomplete(self) -> bool:
        return any(p.requires_grad for i in range(len(self.groups)) for p in self.without_block(i))

    def _analyse(self, graph: Graph, pairs: Sequence[OutputCotangent], batch: int, comm: Comm) -> Known:
        own = self.parameters.group_of
        sites = Sites(graph, lambda tensor: id(tensor) in own, batch)
        _refuse(sites.names)
        found = list(sites)
        fed = {s.node for s in found if s.role in PRODUCT_ROLES or s.role in ("offset", "gain", "shift")}
        roots = list(graph.key[: len(pairs)])
        alone = []
        bare: set[int] = set()
        for pair, root in zip(pairs, roots, strict=True):
            assert isinstance(root, int)
            below = sites.below(root) if pair.root is not None else set()
            one = pair.root is not None and not below & fed and _is_one(pair.root)
            alone.append(one)
            if one:
                bare.update(id(p) for leaf, p in sites.leaves.items() if leaf in below)
        if self.diagonal_memory:
            types = {id(s.parameter): self.parameters.holder(s.parameter)[0] for s in found}
            bare |= {i for i, name in types.items() if is_recurrent(self.parameters.type_of(name))}
        planner = Planner(self.parameters, graph, found, bare)
        planned = planner.plan()
        warn_of(self.parameters, planner.strange, self._warned)
        if comm.alone:
            self._adopt([p.spec for p in planned])
        elif self._incomplete():
            of_all = comm.gather([p.spec for p in planned])
            for specs in of_all:
                self._adopt(specs)
        tasks = [task for p in planned if (task := self._match(p)) is not None]
        return Known(tasks, alone, {})

    def _match(self, planned: Planned) -> tuple[Block, list[Task]] | None:
        """Return the block of what was planned, and its uses in the words of the block."""
        block = self._fitting(planned.spec)
        if block is None:
            return None
        if isinstance(block, DiagonalBlock) and planned.spec.form is not None:
            tasks = [t._replace(param="param", form=t.form or planned.spec.form) for t in planned.tasks]
            return block, tasks
        return block, planned.tasks

    def _fitting(self, spec: Spec) -> Block | None:
        """Return the block that serves a specification, if there is one."""
        names = {name for _, name in spec.params}
        touched = [b for b in self if names & {name for _, name in b.spec.params}]
        if len(touched) != 1:
            return None
        (block,) = touched
        same = {name for _, name in block.spec.params} == names
        if not same:
            return None
        if block.spec == spec or (
            block.spec.params == spec.params and not block.spec.form and not spec.form
        ):
            return block
        if block.spec.form is None:
            # A weight once used in ways that go into no Kronecker block keeps its diagonal one.
            single = len(names) == 1 and block.spec.params[0][0] == "param"
            return block if single and spec.form is not None else None
        if spec.form is not None and spec.form.view is None and block.spec.params == spec.params:
            return block  # the weight is frozen, and its form known from before
        return None

    def _adopt(self, specs: Sequence[Spec]) -> None:
        """Build the blocks that are missing; those that they replace go."""
        built: list[Block] = []
        for spec in specs:
            if self._fitting(spec) is not None:
                continue
            names = {name for _, name in spec.params}
            for blocks in self.blocks:
                blocks[:] = [b for b in blocks if not names & {name for _, name in b.spec.params}]
            self.blocks[spec.group].append(self._build(spec))
            built.append(self.blocks[spec.group][-1])
        if built:
            self._tell_of_wide(built)
            for blocks in self.blocks:
                blocks.sort(key=lambda b: self.parameters.place(b.spec))
            self._known.clear()
            self._without = None

    def _tell_of_wide(self, blocks: Sequence[Block]) -> None:
        """Say which layers have factors in parts that nobody asked for."""
        wide = [b for b in blocks if isinstance(b, KroneckerBlock) and b.is_split]
        wide = [b for b in wide if b.options.max_factor_size == "auto"]
        if wide:
            _LOG.warning(
                "K-FAC keeps the factors of %s as blocks of at most %d coordinates, as they are wider "
                "than %d: Curvature(max_factor_size=None) keeps them whole.",
                ", ".join(f"{b.name or 'the model'} {tuple(b.form.shape)}" for b in wide),
                BLOCK,
                WIDEST,
            )

    def _build(self, spec: Spec) -> Block:
        params = {key: self.parameters.by_name[name] for key, name in spec.params}
        if spec.form is None:
            return DiagonalBlock(spec, params, self.options.stat_decay)
        options = self.options.of(spec.params[0][1]) or self.options
        kind = EigenvalueCorrectedBlock if options.approximation == "ekfac" else KroneckerBlock
        holder, _ = self.parameters.holder(params[spec.params[0][0]])
        if is_chain(spec, self.parameters.type_of(holder), options):
            kind = LinearGaussianBlock
        return kind(spec, params, options)

    # ------------------------------------------------------------------ state

    def describe(self) -> dict[str, Any]:
        """Return what each block is of, as plain containers."""
        return {
            b.name: {
                "params": [list(pair) for pair in b.spec.params],
                "form": None if b.spec.form is None else b.spec.form.plain(),
            }
            for b in self
        }

    def of_state(self, state: Any, described: Mapping[str, Any]) -> list[list[Block]]:
        """Build the blocks that a saved state is of, without any statistics.

        :param state: of each block, by name; ``None`` if it is one of no KFAC
        :param described: see :meth:`describe`; states once had none
        :raises ValueError: the state of another model, or a block of another shape or form
        """
        if state is None:
            raise ValueError("This state belongs to another model: it has no curvature.")
        blocks: list[list[Block]] = [[] for _ in self.groups]
        odd = []
        for name, of_block in state.items():
            spec = self._spec_of(name, of_block, described.get(name))
            if spec is None:
                odd.append(name)
            elif not self._fits(spec):
                raise ValueError(
                    f"The curvature of block {name!r} in this state is of parameters of other shapes "
                    "than the model's."
                )
            else:
                blocks[spec.group].append(self._build(spec))
        missing = self._missing(state, [b for of_group in blocks for b in of_group])
        if odd or missing:
            raise ValueError(
                "This state belongs to another model: the curvature blocks "
                f"{sorted([*odd, *missing])} are not in both."
            )
        for of_group in blocks:
            of_group.sort(key=lambda b: self.parameters.place(b.spec))
            for block in of_group:
                block.check_state(state[block.name])
        return blocks

    def take(self, blocks: list[list[Block]]) -> None:
        """Go on with blocks made by :meth:`of_state`."""
        self.blocks[:] = blocks
        self._forget()

    def _missing(self, state: Mapping[str, Any], blocks: Sequence[Block]) -> list[str]:
        """Return blocks of now that a state knows nothing of."""
        if not state:  # nothing was captured yet
            return []
        covered = {name for b in blocks for _, name in b.spec.params}
        return [b.name for b in self if b.ready and not {n for _, n in b.spec.params} & covered]

    def _spec_of(self, name: str, state: Mapping[str, Any], of: Mapping[str, Any] | None) -> Spec | None:
        parameters = self.parameters
        if of is not None:
            params = [(str(key), str(full)) for key, full in of["params"]]
            form = None if of["form"] is None else Form.of_plain(of["form"])
        else:  # of a version that went by the types of modules
            params = self._legacy_params(name, state)
            form = self._legacy_form(params, state) if "inverse" in state else None
        known = [parameters.by_name.get(full) for _, full in params]
        groups = {parameters.group_of.get(id(p)) for p in known}
        if not params or None in groups or len(groups) > 1:
            return None
        return Spec(name, int(next(iter(groups)) or 0), tuple(params), form)

    def _fits(self, spec: Spec) -> bool:
        """Whether the matrix of a block holds all entries of its parameters, and no other."""
        if spec.form is None:
            return True
        params = {key: self.parameters.by_name[name] for key, name in spec.params}
        rows = math.prod(spec.form.shape[:-1])
        if "bias" in params and params["bias"].numel() != rows:
            return False
        weight = params.get("weight")
        return weight is None or spec.form.fits(weight.numel())

    def _legacy_params(self, name: str, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        by_name, group_of = self.parameters.by_name, self.parameters.group_of
        prefix = f"{name}." if name else ""
        own = [(key, prefix + key) for key in ("weight", "bias") if prefix + key in by_name]
        own = [(key, full) for key, full in own if id(by_name[full]) in group_of]
        if len(own) == len(state["trainable"]) and name not in by_name:
            return own
        return [("param", name)]

    def _legacy_form(self, params: Sequence[tuple[str, str]], state: Mapping[str, Any]) -> Form | None:
        by_name = self.parameters.by_name
        by_key = {key: by_name[full] for key, full in params if full in by_name}
        trains = dict(zip([key for key, _ in params], state["trainable"], strict=True))
        values = state["average"]["values"]
        A = tuple(values[0].shape) if values and trains.get("weight", True) else ()
        weight = by_key.get("weight")
        if weight is None:
            bias = by_key.get("bias")
            return None if bias is None else Form((bias.numel(), 0), None)
        return of_legacy(weight.shape, A, bool(trains.get("bias", False)))

    def __getstate__(self) -> dict[str, Any]:
        """Copy without what is known of graphs, whose keys are of this process."""
        return {**self.__dict__, "_known": {}, "_parameters": None, "_without": None}


def _is_one(root: Tensor) -> bool:
    """Whether all samples have the same value, which is looked at once for each graph."""
    return root.ndim == 0 or root.is_meta or bool((root == root[:1]).all())


def _refuse(names: Sequence[str]) -> None:
    """Refuse graphs that hide their parameters.

    :raises RuntimeError: says what to do
    """
    for name in names:
        if name.startswith(nodes.CHECKPOINT):
            raise RuntimeError(
                "Reentrant checkpointing hides the layers inside from K-FAC: call "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        if name.startswith(nodes.COMPILED):
            raise RuntimeError(
                "A compiled function hides its layers from K-FAC: compile the module that KFAC was "
                "given or a part of it, and call that inside `with kfac.capture():`, where it runs "
                'uncompiled; else call it under torch.compiler.set_stance("force_eager").'
            )
