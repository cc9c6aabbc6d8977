"""The parts of `benchmarks/tofu.py`: TOFU (arXiv 2401.06121) on a small model and a subset of its rows.

Read `data.py` (which rows), `memorise.py` (the models before and the retain-only model), `unlearn.py` (one run),
`evaluate.py` (what is measured), `table.py` (the page that comes out) and `tune.py` (choosing settings).
"""
