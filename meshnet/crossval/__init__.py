"""Cross-validation and its report. The only room that reads test cases."""
