from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mote_quant.steps.quantize.spill import Spill


@pytest.mark.parametrize("held_bytes", [0, 100, 10_000])
def test_what_goes_in_comes_out_in_order(held_bytes):
    tensors = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    tensors[2] = tensors[2].bfloat16().t()
    spill = Spill(held_bytes)
    for tensor in tensors:
        spill.append(tensor)
    assert len(spill) == 4
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(spill, tensors, strict=True))
    spill.replace(1, tensors[0] + 1)
    assert torch.equal(spill[1], tensors[0] + 1)
    assert torch.equal(spill[3], tensors[3])


def test_only_so_many_bytes_stay_in_memory_and_the_folder_goes_with_the_list():
    spill = Spill(held_bytes=80)
    for _ in range(3):
        spill.append(torch.zeros(20))
    on_disk = [item for item in spill._items if not isinstance(item, torch.Tensor)]
    assert len(on_disk) == 2
    spill.replace(0, torch.ones(20))
    assert isinstance(spill._items[0], torch.Tensor)
    folder = Path(on_disk[0][0]).parent
    assert folder.is_dir()
    del spill
    assert not folder.exists()
