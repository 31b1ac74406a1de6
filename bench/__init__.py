"""Workloads W1 to W7 against Holdfast and a baseline; see README.md here."""
