"""Change a module of the core one node at a time and see which changes its tests notice: ``python -m tests.mutants scan``.

The mutants that no test can notice, or that are left, are named with their reason in survivors.toml. The status is 1
where another one survives, where a name there fits no mutant that survives, or where a score is below 95 %.
"""

import argparse
import sys
from pathlib import Path

from tests.mutants.modules import MODULES
from tests.mutants.operators import mutants, sample
from tests.mutants.run import run
from tests.mutants.survivors import described, judged, listed

SHOWN = {"killed": ".", "timeout": "T", "survived": "S"}
PROJECT = Path(__file__).parents[2]


def main() -> int:
    """Run the command and return its status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("module", nargs="*", choices=[*MODULES, []], help="modules to change; all by default")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--seconds", type=float, default=10, help="of the processor for each mutant, at least")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only", type=int, nargs="+", help="run these mutants of one module and show what the tests print"
    )
    parser.add_argument("--list", action="store_true", help="show the mutants and run none")
    options = parser.parse_args()
    if options.only is not None and len(options.module) != 1:
        parser.error("--only: name one module")
    rows = []
    for name in options.module or MODULES:
        module = MODULES[name]
        found = mutants((PROJECT / module.path).read_text())
        chosen = sample(found, options.sample or len(found), options.seed)
        if options.only is not None:
            chosen = [mutant for mutant in found if mutant.number in options.only]
        if options.list:
            for mutant in chosen:
                print(described(module, mutant))
            continue
        results = []
        for result in run(PROJECT, module, chosen, seconds=options.seconds, processes=options.processes):
            results.append(result)
            if options.only is None:
                print(SHOWN[result.outcome], end="", flush=True)
            else:
                print(described(module, result.mutant), result.output, result.outcome, sep="\n")
        print()
        rows.append(judged(name, module, found, results, listed(name)))
    for row in rows:
        print("\n".join([row.text, *row.faults]))
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
