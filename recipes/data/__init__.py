"""Forget, retain and neighbour rows: reading them, and the rows that ship for the demo.

Start with `rows.py` (one row and the formats it is read from), then `sets.py` (the rows of one request).
The `*.jsonl` files beside are the demo's, written for efface.
"""

from .rows import Row, read_rows, row_from_json, row_to_json
from .sets import RequestData, from_payload, load_request_data, shipped, shipped_request, to_payload

__all__ = [
    "RequestData",
    "Row",
    "from_payload",
    "load_request_data",
    "read_rows",
    "row_from_json",
    "row_to_json",
    "shipped",
    "shipped_request",
    "to_payload",
]
