"""Where the tests find the repository's own files."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "photos"
GOLDEN = ROOT / "tests" / "golden"
