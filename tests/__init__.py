"""The tests, by what they are about; see CONTRIBUTING.md."""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The repository."""

IS_WHOLE: Final = os.environ.get("WSPOOL_TEST_ALL") == "1"
"""Whether long searches are run as well, and the others for longer: `make test-all`."""
