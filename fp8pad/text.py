"""Text from a checkpoint, made safe to print."""


def printable(text: str) -> str:
    """Return `text` with everything that could steer a terminal or break a line written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
