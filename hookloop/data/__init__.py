"""Fields in files: opened, checked, chosen by time and read, by plugins that learn from them."""
