"""Where scans and their masks come from: one file for each format."""
