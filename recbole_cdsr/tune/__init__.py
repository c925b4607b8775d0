"""Searches for hyper-parameters with Ray Tune, on validation events only.

This file imports nothing, and nothing outside this package imports it: training never needs ray.
"""
