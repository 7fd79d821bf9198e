"""Rules for arguments that several subjects share."""
