"""What the recipes are made of: images, networks, measurements, tables and figures."""
