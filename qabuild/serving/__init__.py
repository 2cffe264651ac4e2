"""Answers questions over HTTP from verified artifacts.

`protocol` and `open_inference` parse requests, `batching` gathers their questions for `model`, `app` is the ASGI
application over them, `connections` limits what clients hold open, and `run` starts and stops it all.
"""
