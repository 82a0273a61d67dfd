"""Torres Figueroa et al. 2024: does the training term help?"""
