"""``python -m tests.fuzz PART [OPTIONS]`` imports the part and runs it; ``--help`` behind the part lists its options."""

import argparse
import sys
from importlib import import_module

PARTS = {
    "weights": "damaged and hostile weights files",
    "calls": "calls against a reference in higher precision",
    "models": "sequences of calls on one model",
}


def main(arguments):
    """Run a part and return its exit status."""
    listed = "\n".join(f"  {name:<10}{what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", epilog=f"parts:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    part = import_module(f"tests.fuzz.{chosen.part}")
    own = argparse.ArgumentParser(
        prog=f"python -m tests.fuzz {chosen.part}",
        description=part.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    part.add_arguments(own)
    return part.main(own.parse_args(chosen.options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
