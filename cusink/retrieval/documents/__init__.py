"""Retrieval of documents and of ragged clouds."""
