"""Describe what fp8pad's contract needs to know about a version of vLLM, without importing it.

    python tests/contract/describe.py vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

The result, `tests/contract/vllm-0.33.0.json`, holds the functions and classes of each module that the contract names,
with their parameters, the attributes that instances get, and lists of names, such as that of linear methods by loader.
`lookup` reads it like `contract.installed` reads an installed vLLM.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from fp8pad.runtime import contract
from fp8pad.runtime.contract import Lookup

HERE = Path(__file__).parent
Json = dict[str, Any]
ReadModule = Callable[[str], str | None]


def describe(version: str, read_module: ReadModule) -> Json:
    """Return the description of a version; `read_module` returns a module's source, or None if there is none.

    Modules that a described class inherits from are described too.
    """
    pending = sorted({symbol.module for symbol in contract.ENGINE_SYMBOLS})
    modules: Json = {}
    while pending:
        name = pending.pop(0)
        source = read_module(name)
        if name in modules or source is None:
            continue
        modules[name] = _module(name, ast.parse(source))
        pending += [base.rpartition(".")[0] for found in modules[name]["classes"].values() for base in found["bases"]]
    return {"vllm": version, "modules": modules}


def _module(name: str, tree: ast.Module) -> Json:
    imported = {alias: target for node in tree.body for alias, target in _imports(name, node)}
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assigned = dict(_assignments(tree.body))
    return {
        "functions": {node.name: _parameters(node) for node in nodes if not isinstance(node, ast.ClassDef)},
        "classes": {node.name: _class(node, name, imported) for node in nodes if isinstance(node, ast.ClassDef)},
        "names": sorted({*imported, *assigned}),
        "lists": {key: values for key, value in assigned.items() if (values := _strings(value))},
    }


def _class(node: ast.ClassDef, module: str, imported: Mapping[str, str]) -> Json:
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    bases = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
    own = {key for key, _ in _assignments(node.body)}
    return {
        "bases": [imported.get(base, f"{module}.{base}") for base in bases],
        "methods": {method.name: _parameters(method) for method in methods if not _is_property(method)},
        "attributes": sorted(own | {name for method in methods for name in _attributes(method)}),
    }


def _imports(module: str, node: ast.stmt) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.ImportFrom):
        return
    # A package's own modules are one level nearer, but no package here is inherited from.
    package = ".".join(module.split(".")[: -node.level]) if node.level else ""
    home = ".".join(part for part in (package, node.module) if part)
    for name in node.names:
        yield name.asname or name.name, f"{home}.{name.name}"


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                yield target.id, node.value


def _attributes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the attributes that a method sets on its instance, and its own name if it is a property."""
    if _is_property(method):
        yield method.name
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def _is_property(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [argument.arg for argument in named if argument]


def _strings(value: ast.expr | None) -> list[str]:
    elements = value.elts if isinstance(value, ast.List | ast.Tuple) else []
    return [item.value for item in elements if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def lookup(description: Json) -> Lookup:
    """Return a function that looks up a name in a description."""

    def find(module: str, name: str) -> tuple[str, ...] | None:
        described = description["modules"].get(module)
        if described is None:
            raise LookupError(f"no module {module}")
        owner, _, last = name.rpartition(".")
        found = _member(description, f"{module}.{owner}", last) if owner else _global(described, last)
        return tuple(found) if found is not None else None

    return find


def _global(module: Json, name: str) -> list[str] | None:
    if name in module["functions"]:
        parameters: list[str] = module["functions"][name]
        return parameters
    if name not in module["classes"] and name not in module["names"]:
        raise LookupError(f"no name {name}")
    return None


def _member(description: Json, class_name: str, name: str) -> list[str] | None:
    module, _, last = class_name.rpartition(".")
    found = description["modules"].get(module, {"classes": {}})["classes"].get(last)
    if found is None:
        raise LookupError(f"no class {class_name}")
    if name in found["methods"]:
        parameters: list[str] = found["methods"][name]
        return parameters
    if name in found["attributes"]:
        return None
    for base in found["bases"]:
        try:
            return _member(description, base, name)
        except LookupError:
            continue
    raise LookupError(f"no attribute {name}")


def _read_from(wheel: ZipFile) -> ReadModule:
    files = set(wheel.namelist())

    def read(module: str) -> str | None:
        path = module.replace(".", "/")
        name = next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in files), None)
        return wheel.read(name).decode() if name else None

    return read


def main() -> None:
    """Describe each given wheel."""
    for path in map(Path, sys.argv[1:]):
        version = path.name.split("-")[1].split("+")[0]
        with ZipFile(path) as wheel:
            description = describe(version, _read_from(wheel))
        out = HERE / f"vllm-{version}.json"
        out.write_text(json.dumps(description, separators=(",", ":"), sort_keys=True) + "\n")
        print(f"{out}: {len(description['modules'])} modules, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
