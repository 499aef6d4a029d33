"""Give a command the options of the function that it calls, with the types and defaults of its signature."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from fp8pad.record import Alignment

Command = TypeVar("Command", bound=Callable[..., None])

# Options for which typer needs a different type than the function's.
_TYPES: Mapping[str, Any] = {"alignment": Literal[tuple(map(str, get_args(Alignment)))], "skip": list[str]}


def takes(function: Callable[..., Any], declared: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Give a command those options of `function` that are `declared`, with the types and defaults that they have there.

    The command gets them as keywords; its own options come after them.
    """

    def with_options(command: Command) -> Command:
        parameters = inspect.signature(command).parameters.values()
        own = [found for found in parameters if found.kind != found.VAR_KEYWORD]
        taken = [
            found.replace(
                kind=found.KEYWORD_ONLY,
                annotation=Annotated[_TYPES.get(found.name, found.annotation), declared[found.name]],
            )
            for found in inspect.signature(function).parameters.values()
            if found.name in declared
        ]
        arguments = [found for found in own if found.kind != found.KEYWORD_ONLY]
        signature = inspect.Signature([*arguments, *taken, *own[len(arguments) :]])
        setattr(command, "__signature__", signature)  # noqa: B010  a name that no type of functions has
        return command

    return with_options


def those_of(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that `function` has."""
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}
