"""Every figure the field quotes, under its named convention."""
