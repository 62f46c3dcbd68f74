"""One file a format: ``read_<format>``, manifest row → AnnData."""
