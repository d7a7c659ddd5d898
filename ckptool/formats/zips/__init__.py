"""The records of zip archives, and their checksums."""
