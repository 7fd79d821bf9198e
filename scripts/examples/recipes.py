#!/usr/bin/env python3
"""Train one model with each loss that docs/training.md compares, and print its table.

The model is a softmax regression on the pixels of scikit-learn's handwritten digits, in PyTorch; the label of a picture
is its digit, and a cost |i - j| / 9 between digits tells transport that 7 for 8 is a smaller mistake than 1 for 8. It
is trained from zero by Adam on 500 pictures, in batches of 100, and tested on the others. Both the pictures and the
batches are drawn anew for each draw, and are the same for all losses.
"""

import argparse
import sys
import time
from typing import NamedTuple

from cusink.cli import InputError, Parser

CLASSES, TRAINING, BATCH, RATE = 10, 500, 100, 0.05


class Recipe(NamedTuple):
    """A loss: a value of transport or none, its eps, and how much of cross-entropy is added."""

    name: str
    value: str | None
    eps: float | None
    cross_entropy: float


RECIPES = (
    Recipe("cross-entropy", None, None, 1.0),
    Recipe("`cost` alone", "cost", 0.01, 0.0),
    Recipe("`cost` alone", "cost", 0.1, 0.0),
    Recipe("`reg_cost` alone", "reg_cost", 0.1, 0.0),
    Recipe("`cost`, and 0.1 cross-entropy", "cost", 0.1, 0.1),
    Recipe("`reg_cost`, and 0.1 cross-entropy", "reg_cost", 0.1, 0.1),
    Recipe("`entropic_cost` alone", "entropic_cost", 0.1, 0.0),
    Recipe("Sinkhorn divergence alone", "divergence", 0.1, 0.0),
    Recipe("Sinkhorn divergence alone", "divergence", 1.0, 0.0),
)


def main(arguments=None):
    """Print the table and return the exit status."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"recipes: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    drawn = [draw_data(seed) for seed in range(given.draws)]
    print(f"| loss | eps | accuracy in {given.draws} draws |\n|---|---|---|")
    for recipe in RECIPES:
        accuracies = [train(recipe, data, given.steps, seed) for seed, data in enumerate(drawn)]
        eps = "" if recipe.eps is None else f"{recipe.eps:g}"
        print(f"| {recipe.name} | {eps} | {', '.join(f'{a:.3f}' for a in accuracies)} |", flush=True)
    print(f"\n{time.perf_counter() - start:.1f} s, {given.steps} steps each")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2, help="of pictures and batches (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of Adam (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.draws < 1 or given.steps < 1:
        raise InputError("--draws and --steps must be at least 1")
    return given


def draw_data(seed):
    """Return pictures (count, 64) and digits (count,) for training, and those for the test."""
    import torch
    from sklearn.datasets import load_digits

    pictures, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    pictures, digits = torch.as_tensor(pictures / 16, dtype=torch.float32)[order], torch.as_tensor(digits)[order]
    return pictures[:TRAINING], digits[:TRAINING], pictures[TRAINING:], digits[TRAINING:]


def loss_of(recipe, scores, labels):
    """Return the loss of scores (B, classes) for labels (B,)."""
    import torch

    from cusink.torch import sinkhorn_divergence, sinkhorn_loss

    loss = recipe.cross_entropy * torch.nn.functional.cross_entropy(scores, labels)
    if recipe.value is None:
        return loss
    classes = torch.arange(float(CLASSES))
    C = (classes[:, None] - classes).abs() / (CLASSES - 1)
    a, b = scores.softmax(dim=1), torch.nn.functional.one_hot(labels, CLASSES).float()
    if recipe.value == "divergence":
        return loss + sinkhorn_divergence(a, b, C, recipe.eps)
    return loss + sinkhorn_loss(a, b, C, recipe.eps, value=recipe.value)


def train(recipe, data, steps, seed):
    """Return the share of the test pictures whose digit is the most probable one, after training."""
    import torch

    pictures, labels, others, digits = data
    model = torch.nn.Linear(pictures.shape[1], CLASSES)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randperm(len(pictures), generator=drawn)[:BATCH]
        optimiser.zero_grad()
        loss_of(recipe, model(pictures[batch]), labels[batch]).backward()
        optimiser.step()
    with torch.no_grad():
        return float((model(others).argmax(dim=1) == digits).float().mean())


if __name__ == "__main__":
    sys.exit(main())
