"""Pictures of raw files, calibrations and products.

`make_pictures` writes those of a product into a folder, as PNG, for reports; the functions of
`axes` draw on matplotlib axes with sky coordinates, for scripts and notebooks.
"""
