"""One image file to pixels; a list of images with labels, splits and groups."""
