"""Peak memory of merging and stacking on files, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_kit import logits  # noqa: F401 - builds on the same kit
