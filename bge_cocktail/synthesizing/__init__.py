"""Making queries from documents alone: writers, filters, splits."""
