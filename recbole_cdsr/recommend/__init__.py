"""Recommendations for anyone from a bundle: raw items in, raw items out; the data set is not needed.

This file imports nothing: `from recbole_cdsr import Recommender`.
"""
