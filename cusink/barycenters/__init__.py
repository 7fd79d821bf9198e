"""Barycenters of histograms."""
