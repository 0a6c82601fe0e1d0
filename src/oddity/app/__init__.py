"""The command line, its data sets, figures and reports: the only layer that may import everything."""
