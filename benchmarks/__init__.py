"""How fast a vanilla RNN is on this machine, in rnncore and in other libraries: ``python -m benchmarks`` in the project's root.

One command measures every backend against every installed peer, forward and forward + backward. Each library runs in its own
process, which is asked for one timed round at a time while the others are stopped. Before it is timed, its results are compared
with a float64 oracle.

    pip install -e ".[test,bench]"
    python -m benchmarks --json docs/performance.json     # measure; also --quick, --add, --minutes, --shapes, --layers, ...
    python -m benchmarks report docs/performance.json     # docs/performance.md and its picture, from the numbers
    python -m benchmarks.calls                            # the overhead of small calls
    python -m benchmarks.gpu                              # conformance, sanitizer and speed on a GPU

| file | content |
|---|---|
| case.py | the cases: shapes fixed in advance, numbers from one seed |
| naive.py | the recurrence step by step: the oracle in float64, a peer in other precisions |
| peers/ | the libraries, one file each |
| worker.py | the process of a library |
| pool.py | those processes from outside: environment, one awake at a time |
| rounds.py | one case: check, then interleaved rounds |
| memory.py | peak memory and cold starts, in fresh processes |
| suite.py | a run: which cases, in which order, in which time |
| ratios.py | paired ratios, intervals, slopes |
| tables.py, markdown.py, report.py, plots.py | the numbers as rows, as text, as a page, as a picture |
| method.md | the section of the page on how it is measured |
| calls.py, diagnostics_cost.py | programs of their own: small calls, and the cost of diagnostics |
| gpu/ | the check and the benchmark on a GPU |
"""
