"""The families that fp8pad knows: one TOML file each, next to this one. README.md says how to add one."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fp8pad.errors import PlanError
from fp8pad.planning.families.family import Description, Family, Mlp
from fp8pad.reading import Reader
from fp8pad.record import Json

__all__ = ["Description", "Family", "Mlp", "Section", "families", "index_families", "sections_of"]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a model: its family, its own config and the prefixes of its tensors.

    `path` is the dotted key of `config` inside config.json, "" for the whole. `mirrors` are other places that repeat
    the same sizes, as some versions of transformers wrote them. `family` is None if no file describes `model_type`.
    """

    model_type: str
    family: Description | None
    path: str
    config: Json
    prefixes: tuple[str, ...]
    mirrors: tuple[tuple[str, Json], ...] = ()

    def dotted(self, key: str) -> str:
        """Return the path of `key` from the top of config.json."""
        return f"{self.path}.{key}" if self.path else key


def sections_of(config: Json, known: Mapping[str, Family] | None = None) -> tuple[Section, ...]:
    """Return the parts of the model that `config` describes, nested ones included, the outermost first.

    `known` maps model types to families; the default is every file here. Raises `PlanError` for a malformed file.
    """
    known = families() if known is None else known
    model_type = str(config.get("model_type"))
    family = known.get(model_type)
    root = Section(model_type, family, "", config, family.prefixes if family else ("",))
    return (root, *_parts(root, ("",), known))


@cache
def families() -> Mapping[str, Family]:
    """Read every family file; `PlanError` if one is malformed or two describe the same model type."""
    entries = sorted(files(__package__).iterdir(), key=lambda entry: entry.name)
    return index_families({entry.name: entry.read_text("utf-8") for entry in entries if entry.name.endswith(".toml")})


def index_families(texts: Mapping[str, str]) -> Mapping[str, Family]:
    """Parse family files, given by name, into a map from model type to family.

    Raises `PlanError`, naming the file and the entry, if anything in one is not as specified.
    """
    known: dict[str, Family] = {}
    for file, text in texts.items():
        try:
            family = Reader(PlanError, is_by_hand=True).read(Family, tomllib.loads(text), file)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"{file}: not TOML: {error}") from error
        for model_type in family.model_types:
            if model_type in known:
                raise PlanError(f"{file}: model_types: {model_type} is in another file too")
            known[model_type] = family
    return known


def _parts(parent: Section, places: Sequence[str], known: Mapping[str, Family]) -> Iterator[Section]:
    """Yield the sections inside `parent`, whose own tensor names begin with one of `places`."""
    for rule in parent.family.section if parent.family else ():
        found = [(key, config) for key in rule.keys if (config := _lookup(parent.config, key)) is not None]
        if not found:
            continue
        (key, config), *mirrors = found
        model_type = rule.like or str(config.get("model_type"))
        section = Section(
            model_type=model_type,
            family=rule if rule.is_described else known.get(model_type),
            path=parent.dotted(key) if key else parent.path,
            config=config,
            prefixes=tuple(place + prefix for place in places for prefix in rule.prefixes),
            mirrors=tuple((parent.dotted(other) if other else parent.path, mirror) for other, mirror in mirrors),
        )
        if not key and section.family and section.family.section:
            raise PlanError(f"{model_type}: a section of the whole config cannot have sections of its own")
        yield section
        yield from _parts(section, section.prefixes, known)


def _lookup(config: Json, key: str) -> Json | None:
    value = config.get(key) if key else config
    return value if isinstance(value, Mapping) else None
