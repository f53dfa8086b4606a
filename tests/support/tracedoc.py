"""The example of ``docs/trace-expand.md``: its configuration, and the home directory that it speaks of."""

from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "trace-expand.md"


def blocks(language: str) -> list[str]:
    """Return the document's code blocks of a language."""
    parts = DOC.read_text().split("```")
    return [part.partition("\n")[2] for part in parts[1::2] if part.startswith(language + "\n")]


CONFIG = blocks("toml")[0]


def home(directory: Path) -> Path:
    """Make the home directory of ann, with her ``.forward``; return what stands for HOME."""
    ann = directory / "ann"
    ann.mkdir(mode=0o755)
    forward = ann / ".forward"
    forward.write_text(blocks("forward")[0])
    forward.chmod(0o644)
    return directory
