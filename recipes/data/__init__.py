"""Forget, retain and neighbour rows: reading them, and the rows that ship for the demo.

Start with `rows.py` (one row), `formats.py` (the shapes it is read from), `source.py` (files, folders, dataset
ids), then `sets.py` (the rows of one request). The `*.jsonl` files beside are the demo's, written for efface.
"""

from .read import Drawn, draw_rows, read_rows, sample
from .rows import Row, row_from_json, row_to_json
from .sets import (
    RequestData,
    from_payload,
    load_request_data,
    load_retain,
    shipped,
    shipped_request,
    to_payload,
)
from .source import Source, parse_source

__all__ = [
    "Drawn",
    "RequestData",
    "Row",
    "Source",
    "draw_rows",
    "from_payload",
    "load_request_data",
    "load_retain",
    "parse_source",
    "read_rows",
    "row_from_json",
    "row_to_json",
    "sample",
    "shipped",
    "shipped_request",
    "to_payload",
]
