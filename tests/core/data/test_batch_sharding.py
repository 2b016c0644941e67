"""Each process's share of a batch; that runs of several processes end as one does is in tests/ranks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore import Placement
from ftcore.data.batch_sharding import gather_batch, local_part, rank_slice

SIZES, RANKS = st.integers(0, 100), st.integers(1, 9)


@given(SIZES, RANKS)
def test_the_shares_of_all_processes_are_each_sample_once_in_their_order(size: int, ranks: int) -> None:
    shares = [range(size)[rank_slice(size, rank, ranks)] for rank in range(ranks)]

    assert [sample for share in shares for sample in share] == list(range(size))


@given(SIZES, RANKS)
def test_no_share_is_larger_than_another_by_more_than_one(size: int, ranks: int) -> None:
    lengths = [len(range(size)[rank_slice(size, rank, ranks)]) for rank in range(ranks)]

    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_a_process_that_has_no_share_goes_through_the_first_sample() -> None:
    assert [local_part([7, 8, 9], rank, 5) for rank in range(5)] == [[7], [8], [9], [7], [7]]


def padded_shares(_rows: Tensor, *, whole: Tensor, ranks: int) -> Tensor:
    """What gathering gives: the share of each process, with zeros up to the length of the longest."""
    shares = [whole[rank_slice(len(whole), rank, ranks)] for rank in range(ranks)]
    return torch.stack([nn.functional.pad(share, (0, 0, 0, len(shares[0]) - len(share))) for share in shares])


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_process_gets_the_rows_of_the_whole_batch(size: int, ranks: int) -> None:
    whole, gathered = torch.randn(size, 4), []
    for rank in range(ranks):
        gather = partial(padded_shares, whole=whole, ranks=ranks)
        here = Placement(torch.device("cpu"), nn.Identity(), lambda model: model, rank, ranks, gather=gather)
        gathered.append(gather_batch(local_part(whole, rank, ranks), size, here))

    assert all(torch.equal(rows, whole) for rows in gathered)
