"""Groups of input columns that share a scale; the last group is short where the size does not divide the columns."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def group_width(group_size: int, columns: int) -> int:
    """Columns in a full group; -1 is the whole row."""
    return max(columns, 1) if group_size == -1 else group_size


def count_groups(group_size: int, columns: int) -> int:
    """How many groups cover the columns, a short last one included."""
    return -(-columns // group_width(group_size, columns))


def split_groups(values: Tensor, group_size: int) -> Tensor:
    """[rows, columns] -> [rows, groups, width], a view where the size divides; a short last group is filled with 0."""
    rows, columns = values.shape
    width, groups = group_width(group_size, columns), count_groups(group_size, columns)
    missing = width * groups - columns
    return (F.pad(values, (0, missing)) if missing else values).reshape(rows, groups, width)


def join_groups(grouped: Tensor, columns: int) -> Tensor:
    """[rows, groups, width] -> [rows, columns]: the inverse of `split_groups`."""
    return grouped.flatten(1)[:, :columns].contiguous()
