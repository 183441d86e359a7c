"""Trees of Python values as JSON and tensors, and back, bit for bit; nothing in them is executed.

What JSON has, it holds as it is. Anything else is an object with the key ``"$"``, which names its kind:
tuples, tensors (by the name under which they lie among the tensors), numpy arrays, classes and spaces of
an allow-list. What is none of these is named where it stood, and must be given again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from acktr.files.allowed import (
    ARRAYS,
    READERS,
    SCHEDULES,
    SETTINGS,
    allowed_classes,
    dtype_name,
    find_array_dtype,
    find_dtype,
    is_class,
    name_of,
    space_from_plain,
    space_to_plain,
)

Json = Any

_LIKE_SIGNED = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}


class Unstorable(TypeError):
    """A value that has no place in a file; its text is the path to it and its type."""


class Absent(ValueError):
    """A value that was not stored and is not given again; its text is the path to it and its type."""


class Encoded(NamedTuple):
    """A tree, or a part of one, that was encoded before the whole is.

    :param structure: what JSON holds
    :param tensors: by name, copies on the CPU
    :param missing: what was named and not stored, by the path to it
    """

    structure: Json
    tensors: dict[str, Tensor]
    missing: dict[str, str]


def encode(tree: Any, *path: str, name_missing: bool = False) -> Encoded:
    """Divide a tree into what JSON holds and its tensors.

    :param tree: of dicts, lists, tuples, deques, plain values, tensors, arrays, classes and spaces, and
        of parts that were encoded already, for the places where they stand
    :param path: to the place where it will stand in a larger tree
    :param name_missing: put a name in the place of a value that cannot be stored
    :raises Unstorable: a value that cannot be stored, unless it may be named
    """
    encoder = _Encoder(name_missing)
    return Encoded(encoder.node(tree, path), encoder.tensors, encoder.missing)


def decode(json: Json, tensors: Mapping[str, Tensor], given: Mapping[str, Any] | None = None) -> Any:
    """Put together what :func:`encode` divided.

    :param json: the JSON
    :param tensors: by name
    :param given: values in the place of stored or of named ones, by the path to them
    :raises Absent: a value that was named and is not given
    :raises ValueError: also KeyError, TypeError and the like: what :func:`encode` never makes
    """
    return _Decoder(tensors, given or {}).node(json, ())


class _Encoder:
    def __init__(self, name_missing: bool) -> None:
        self._name_missing = name_missing
        self.tensors: dict[str, Tensor] = {}
        self.missing: dict[str, str] = {}

    def node(self, value: Any, path: tuple[str, ...]) -> Json:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is Encoded:
            self.tensors.update(value.tensors)
            self.missing.update(value.missing)
            return value.structure
        if type(value) is float:
            return value if math.isfinite(value) else {"$": "float", "value": repr(value)}
        if type(value) is dict or type(value).__name__ in ("OrderedDict", "defaultdict"):
            return self._dict(value, path)
        if type(value) is list:
            return self._items(value, path)
        if type(value) is tuple:
            return {"$": "tuple", "items": self._items(value, path)}
        if isinstance(value, deque):
            return {"$": "deque", "items": self._items(value, path), "maxlen": value.maxlen}
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.char in ARRAYS:
            return self._array(value, path)
        return self._named(value, path)

    def _named(self, value: Any, path: tuple[str, ...]) -> Json:
        if isinstance(value, bytes):
            return {"$": "bytes", "value": value.hex()}
        if isinstance(value, torch.dtype):
            return {"$": "dtype", "name": dtype_name(value)}
        if isinstance(value, torch.device):
            return {"$": "device", "name": str(value)}
        if is_class(value) and allowed_classes().get(name_of(value)) is value:
            return {"$": "class", "name": name_of(value)}
        if SETTINGS.get(type(value).__name__) is type(value):
            names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]  # all are
            fields = {name: getattr(value, name) for name in names}
            return {"$": "settings", "name": type(value).__name__, "values": self._dict(fields, path)}
        if type(value) in SCHEDULES.values():
            state = self._dict(vars(value), path)
            return {"$": "schedule", "name": type(value).__name__, "state": state}
        plain = space_to_plain(value) if isinstance(value, spaces.Space) else None
        if plain is not None:
            return {"$": "space", "space": self._dict(plain, path)}
        of = name_of(value) if is_class(value) else name_of(type(value))
        if not self._name_missing:
            raise Unstorable(f"{'.'.join(path)} is of {of}")
        self.missing[".".join(path)] = of
        return {"$": "missing", "type": of}

    def _dict(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Json:
        if all(isinstance(key, str) for key in value) and "$" not in value:
            return {key: self.node(item, (*path, key)) for key, item in value.items()}
        pairs = [
            [self.node(key, path), self.node(item, (*path, str(key)))] for key, item in value.items()
        ]
        return {"$": "dict", "items": pairs}

    def _items(self, values: Any, path: tuple[str, ...]) -> list[Json]:
        return [self.node(item, (*path, str(index))) for index, item in enumerate(values)]

    def _tensor(self, value: Tensor, path: tuple[str, ...]) -> Json:
        order = _memory_order(value)
        laid = value.detach() if order is None else value.detach().permute(order)
        # A copy: the file refuses tensors that share memory, such as inverses made in one batch.
        name = self._add(laid.cpu().contiguous().clone(), path)
        return {"$": "tensor", "name": name, **({} if order is None else {"order": order})}

    def _array(self, value: Any, path: tuple[str, ...]) -> Json:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch has no other
        kind, dtype = ("array" if isinstance(value, np.ndarray) else "scalar"), str(array.dtype)
        # torch has these only in part.
        array = array.view(_LIKE_SIGNED.get(dtype, dtype))
        return {"$": kind, "name": self._add(torch.from_numpy(array.copy()), path), "dtype": dtype}

    def _add(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        name = "/".join(path) or "value"
        while name in self.tensors:
            name += "'"
        self.tensors[name] = tensor
        return name


def _memory_order(tensor: Tensor) -> list[int] | None:
    """Return the axes from the slowest to the fastest in memory; ``None`` if that is their order.

    Products of matrices that lie in memory otherwise may be rounded otherwise.
    """
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.ndim), key=lambda axis: tensor.stride(axis), reverse=True)
    return order if tensor.permute(order).is_contiguous() else None


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._given = given

    def node(self, json: Json, path: tuple[str, ...]) -> Any:
        if ".".join(path) in self._given:
            return self._given[".".join(path)]
        if isinstance(json, list):
            return self._items(json, path)
        if not isinstance(json, dict):
            return json
        if "$" not in json:
            return {key: self.node(item, (*path, key)) for key, item in json.items()}
        return self._special(json, path)

    def _items(self, values: Any, path: tuple[str, ...]) -> list[Any]:
        if not isinstance(values, list):
            raise TypeError(f"{'.'.join(path)} is no list")
        return [self.node(item, (*path, str(index))) for index, item in enumerate(values)]

    def _special(self, json: dict[str, Json], path: tuple[str, ...]) -> Any:
        kind = json["$"]
        if kind == "tensor":
            # Memory of its own, which begins where torch lets every tensor begin.
            tensor = self._tensors[json["name"]].clone()
            if "order" not in json:
                return tensor
            order = json["order"]
            return tensor.permute([order.index(axis) for axis in range(len(order))])
        if kind in ("array", "scalar"):
            array = self._tensors[json["name"]].numpy().view(find_array_dtype(json["dtype"]))
            return array if kind == "array" else array[()]
        if kind == "tuple":
            return tuple(self._items(json["items"], path))
        if kind == "deque":
            return deque(self._items(json["items"], path), maxlen=json["maxlen"])
        if kind == "dict":
            return {
                self.node(key, ()): self.node(item, (*path, str(key))) for key, item in json["items"]
            }
        if kind == "float":
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[json["value"]]
        if kind == "bytes":
            return bytes.fromhex(json["value"])
        return self._look_up(kind, json, path)

    def _look_up(self, kind: Json, json: dict[str, Json], path: tuple[str, ...]) -> Any:
        if kind == "dtype":
            return find_dtype(json["name"])
        if kind == "device":
            return torch.device(json["name"])
        if kind == "class":
            if json["name"] not in allowed_classes():
                raise ValueError(
                    f"{'.'.join(path)} names the class {json['name']}, which is not allowed"
                )
            return allowed_classes()[json["name"]]
        if kind == "schedule":
            schedule = object.__new__(SCHEDULES[json["name"]])
            schedule.__dict__.update(self.node(json["state"], path))
            return schedule
        if kind == "settings":
            build = READERS.get(json["name"], SETTINGS[json["name"]])
            return build(**self.node(json["values"], path))
        if kind == "space":
            return space_from_plain(self.node(json["space"], path))
        if kind == "missing":
            raise Absent(f"{'.'.join(path)} (of {json['type']})")
        raise ValueError(f"{'.'.join(path)} is of the unknown kind {kind!r}")
