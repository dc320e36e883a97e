"""Check rnncore on this machine's GPU, and measure it: ``python -m benchmarks.gpu``, one command without a network.

First the conformance suite for each library that sees a GPU, all suites side by side; then CUDA's compute-sanitizer over CuPy's
kernels; then the benchmark, with the cases, workers, rounds and tables of the benchmark on the CPU. report.json and, made from
it, report.md are written after each step.

| file | content |
|---|---|
| __main__.py | the command: look, run, write |
| parts.py | what runs: suites and sanitizer, each in a process with a time limit |
| look.py | which GPUs a library sees |
| suite.py | the process of one suite |
| kernels.py | every kernel of the CuPy backend against float64 |
| measure.py | the benchmark: libraries, shapes, goals |
| report.py | the report in Markdown |
"""
