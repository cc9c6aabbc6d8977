"""The parts of `benchmarks/stack.py`: N forget requests on one model, stacked, and whether each stays forgotten.

Read `data.py` (which rows), `method.py` (the ways to come by a stack), `make.py` (adapters, trained once and kept),
`measure.py` (what is measured of a stack, `said.py`: in words), `records.py` (what is kept of that), `table.py` (what
comes out, with `columns.py`, `page.py` and `plot.py`) and `forecast.py` (what the files alone would have said).
"""
