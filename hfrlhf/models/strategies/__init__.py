"""Distribution strategies: a file each, and the table that names them."""
