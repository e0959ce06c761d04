"""Experiments: arms answer questions, a journal keeps the answers, and a judge compares them."""
