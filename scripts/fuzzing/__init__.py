"""Random problems, and the one property that all answers are to have; see `run.py`.

Every call ends in a TypeError or ValueError that names a parameter, before any work; or in a result whose own claims
hold when `claims.py`, which imports nothing of cusink, computes them again in float64.
"""
