"""The tests, by what they are about; see CONTRIBUTING.md."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The repository."""
