"""What happens to files: the ways of damage that tests apply to each kind of file."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Change one bit."""
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def edited(content: bytes, chance: random.Random) -> bytes:
    """Change one digit, so that text can still be parsed."""
    places = [i for i, byte in enumerate(content) if byte in b"12345678"] or [0]
    place = chance.choice(places)
    return content[:place] + bytes([content[place] + 1]) + content[place + 1 :]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "deleted": lambda _, __: None,
    "empty": lambda _, __: b"",
    "half": lambda content, _: content[: len(content) // 2],
    "zeros": lambda content, _: bytes(len(content)),
    "flipped": flipped,
    "edited": edited,
}


def damage(path: Path, kind: str) -> None:
    """Damage a file; the place depends on its name alone."""
    content = DAMAGES[kind](path.read_bytes(), random.Random(f"{path.name} {kind}"))
    path.unlink() if content is None else path.write_bytes(content)
