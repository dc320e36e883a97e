"""How fast a vanilla RNN is on this CPU, ours and every peer's, in one run: ``python -m benchmarks`` in the project's root.

One command measures every backend against every peer that is installed, forward and forward + backward. Each stands in a
process of its own that is kept alive and asked for one timed round at a time, in turn, while the others are stopped; before it
is timed, its results are held against a float64 oracle.

    pip install -e ".[test,bench]"
    python -m benchmarks --json docs/performance.json     # measure; also --quick, --minutes, --shapes, --layers, ...
    python -m benchmarks report docs/performance.json     # docs/performance.md and its pictures, from the numbers

| file | its one idea |
|---|---|
| case.py | what is computed: shapes fixed in advance, numbers from one seed |
| naive.py | the recurrence step by step: the oracle in float64, a peer in the others' precision |
| peers/ | who computes it: one file for each library |
| worker.py | the process that a library runs in |
| pool.py | those processes, seen from outside: environment, one awake at a time |
| rounds.py | one case: check, then rounds in turn |
| memory.py | peak memory and cold starts, in fresh processes |
| suite.py | which cases, in which order, within which time |
| ratios.py | medians, paired ratios, intervals, slopes |
| tables.py, markdown.py, report.py, plots.py | the numbers as rows, as text, as a page, as a picture |
"""
