"""The examples, a package so that no other folder of this name is taken for it; each file runs by itself."""
