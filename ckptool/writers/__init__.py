"""Writers of output files, which appear complete or not at all; one module a format."""
