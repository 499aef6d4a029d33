"""Messages to workers in other processes, and their answers: JSON, in which work is a class name and its fields.

Work is a frozen dataclass; the type hints of its `__call__(item, advance)` are the types of items and results. All of
them are read strictly, by their types.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_type_hints

from fp8pad import errors
from fp8pad.errors import ClusterError, Fp8padError
from fp8pad.reading import Reader

_READER = Reader(ClusterError)


def to_text(value: object) -> str:
    """Return dataclasses, nested ones included, as JSON on one line."""
    return json.dumps(value, default=_fields)


def _fields(value: Any) -> dict[str, Any]:
    if not is_dataclass(value):
        raise TypeError(f"a {type(value).__name__} cannot be sent to another process")
    return {field.name: getattr(value, field.name) for field in fields(value)}  # `asdict` copies all that is in it


def work_to_text(work: object) -> str:
    """Return work as its class name and its fields."""
    return to_text({"name": f"{type(work).__module__}:{type(work).__qualname__}", "fields": work})


def perform(work_text: str, item_text: str) -> Any:
    """Do work on an item; return its result and the bytes that it reported, or the error that it raised, as JSON."""
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes

    document = json.loads(work_text)
    module, _, name = document["name"].partition(":")
    kind = getattr(import_module(module), name)
    try:
        work = _READER.read(kind, document["fields"], name)
        item = _READER.read(_hints(kind)["item"], json.loads(item_text), name)
        value = work(item, advance)
        return json.loads(to_text({"value": value, "num_bytes": done}))
    except (Fp8padError, OSError) as error:
        return error_to_json(error)


def result_of(work: object, answer: Mapping[str, Any]) -> Any:
    """Return the result in an answer, or raise the error in it."""
    if "error" in answer:
        raise _error_of(answer)
    return _READER.read(_hints(type(work))["return"], answer["value"], "a worker's answer")


def error_to_json(error: Exception) -> dict[str, Any]:
    """Return an error as its class name and message."""
    return {"error": type(error).__name__, "message": str(error)}


def _error_of(answer: Mapping[str, Any]) -> Exception:
    error: Exception = getattr(errors, answer["error"], ClusterError)(answer["message"])
    if "host" in answer:
        error.add_note(f"on node {answer['host']} of the Ray cluster")
    return error


def _hints(kind: type) -> dict[str, Any]:
    """Return the types of an item and of a result."""
    hints = get_type_hints(kind.__call__, include_extras=True)
    return {"item": next(iter(hints.values())), "return": hints["return"]}
