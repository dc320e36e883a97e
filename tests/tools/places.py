"""Where the project's folders are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "rnncore"
DOUBLES = ROOT / "tests" / "doubles"
FAKE = DOUBLES / "fake_cupy"
ACME = DOUBLES / "acme_plugin"
