"""Recipes: published data sets by exact section, how they are prepared and run, and the figures published on them."""

from hescribe.datasets.recipes.prepare import Prepared, prepare
from hescribe.datasets.recipes.record import Figure, Recipe, RecipeSection
from hescribe.datasets.recipes.table import find_recipe, list_recipes, published_figures

__all__ = [
    "Figure",
    "Prepared",
    "Recipe",
    "RecipeSection",
    "find_recipe",
    "list_recipes",
    "prepare",
    "published_figures",
]
