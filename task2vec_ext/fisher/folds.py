"""Which images a head is not fitted to: folds in which every answer (class, label) occurs in the other folds, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

IN_ALL = -1
"""The fold of an image that every head is fitted to."""


def assign_folds(answers: Tensor, index: Tensor, num_folds: int, seed: int) -> Tensor:
    """Return the fold of every image, ``[N]`` int64 in 0…num_folds−1, or `IN_ALL`.

    The images of an answer are dealt to the folds in turn, rarest answer first, so that folds agree in size and in
    their share of each answer. If all images with an answer are in one fold (its only image, for instance), one of
    them becomes `IN_ALL`: no head lacks an answer.

    Args:
        answers: ``[M, 2]`` pairs (row, answer), as ``loss.answers`` returns them.
        index: ``[N]``, the images' numbers in their task. The folds depend on them and the seed, not on the order.
        num_folds: K >= 2.
        seed: Of the order in which images are dealt.
    """
    numbers = index.numpy()
    key = np.random.Generator(np.random.Philox(key=[seed, num_folds])).random(int(numbers.max(initial=-1)) + 1)[numbers]
    rows, answer = answers.numpy().T
    order = np.lexsort((key[rows], answer))
    rows, answer = rows[order], answer[order]
    _, starts, counts = np.unique(answer, return_index=True, return_counts=True)
    having = np.split(rows, starts[1:])  # the rows of each answer, in random order

    fold = np.full(len(numbers), IN_ALL)
    sizes = np.zeros(num_folds, dtype=np.int64)

    def deal(some: np.ndarray) -> None:
        dealt = fold[some]
        own = np.bincount(dealt[dealt >= 0], minlength=num_folds)
        rest = some[dealt < 0]
        fold[rest] = np.resize(np.lexsort((sizes, own)), len(rest))
        sizes[:] += np.bincount(fold[rest], minlength=num_folds)

    # Equal counts in an order that does not depend on how answers are numbered.
    for number in np.lexsort(([key[some[0]] for some in having if len(some)], counts)):
        deal(having[number])
    deal(key.argsort())  # those without an answer
    for some in having:
        if len(some) and (fold[some] == fold[some[0]]).all():
            fold[some[0]] = IN_ALL
    return torch.from_numpy(fold)
