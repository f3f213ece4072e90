"""Hard negatives: documents that rank high for a query and are not relevant."""
