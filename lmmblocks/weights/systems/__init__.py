"""Released models, one file each: how their folders are recognised, read and written."""
