"""A report as a page of HTML that needs nothing else."""

from bge_cocktail.report.page.html import html_page

__all__ = ["html_page"]
