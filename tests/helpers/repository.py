"""Where the repository's files lie."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
TINY = ROOT / "models" / "tiny-xlm-roberta"
