"""Images for the recipes: folders, archives, generated ones."""
