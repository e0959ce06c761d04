"""Turns results into tables, pages and figures."""
