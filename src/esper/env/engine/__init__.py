"""Engines: how K hosts are trained side by side."""
