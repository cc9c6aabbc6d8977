"""The parts of `benchmarks/stack.py`: N forget requests on one model, stacked, and whether each stays forgotten.

Read `data.py` (which rows), `method.py` (the ways to come by a stack), `make.py` (adapters, trained once and kept),
`measure.py` (what is measured of a stack) and `table.py` (the page and the plot that come out).
"""
