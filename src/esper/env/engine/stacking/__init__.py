"""Many networks of one structure run as one.

Stacked values, the rules of what each function does to them, and the networks' parameters in common storage.

Legend of the shapes in this package: K hosts (rows), n rows that hold the same blueprint in a slot, N samples, C
channels, L positions of a sequence, H × W positions of an image, P parameters of one row.
"""
