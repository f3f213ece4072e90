"""Training records, BEIR folders, labelled texts: reading, checking, writing."""
