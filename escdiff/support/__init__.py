"""Tools of every room: errors, files, progress bars, picture grids, folders of configurations."""
