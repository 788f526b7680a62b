"""The bundled model: its world, its data, its parts and the recipes that train them."""
