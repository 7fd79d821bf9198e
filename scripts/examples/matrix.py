#!/usr/bin/env python3
"""Write the Sinkhorn distances between two sets of images to a file: what ``cusink distance-matrix`` does, in short.

    matrix.py queries.npy corpus.npy --eps 0.01 -o distances.npy

Each file is an array of shape (count, height, width) of non-negative numbers. Every image is divided by its mass, and
the cost of moving mass between two cells is their squared distance, the largest scaled to 1. Stopped, by whatever, the
same command goes on with what is missing.
"""

import argparse

import numpy as np

import cusink


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("queries")
    parser.add_argument("corpus")
    parser.add_argument("--eps", type=float, default=0.01, help="regularisation beside a largest cost of 1 (0.01)")
    parser.add_argument("-o", "--output", required=True, help="the .npy file or .zarr store to write")
    given = parser.parse_args(arguments)

    queries, corpus = (np.load(name, allow_pickle=False).astype(np.float64) for name in (given.queries, given.corpus))
    shape = queries.shape[1:]
    cells = np.indices(shape).reshape(len(shape), -1).T  # the bins: one row of coordinates for each cell
    C = cusink.cost_matrix(cells, metric="sqeuclidean")
    A, B = (images.reshape(len(images), -1) for images in (queries, corpus))
    A, B = (x / x.sum(axis=1, keepdims=True) for x in (A, B))
    D = cusink.distance_matrix(A, B, C / C.max(), eps=given.eps, out=given.output, progress=True)
    print(f"{given.output}: {D.shape[0]} x {D.shape[1]}; nearest to the first query: {np.argsort(D[0])[:5].tolist()}")


if __name__ == "__main__":
    main()
