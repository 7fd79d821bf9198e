"""Distance matrices and nearest neighbours."""
