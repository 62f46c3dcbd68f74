"""The page of the recipes says what the records say."""

from pathlib import Path

from hescribe.datasets.recipes import list_recipes
from hescribe.datasets.recipes.page import recipes_markdown

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "README.md"
MARK = "<!-- made by: python -m hescribe.datasets.recipes.page -->\n"


def test_the_page_agrees_with_the_records() -> None:
    """When this fails: put what ``python -m hescribe.datasets.recipes.page`` prints below the mark."""
    head, made = PAGE.read_text(encoding="utf-8").split(MARK)
    assert made == recipes_markdown()
    assert "hescribe datasets prepare" in head
    comparable = [f for recipe in list_recipes() for f in recipe.figures if f.comparable]
    assert ("none of those below" in head) == (not comparable)


def test_every_recipe_has_commands_sections_and_its_verdict() -> None:
    text = recipes_markdown()
    for recipe in list_recipes():
        part = text.split(f"### {recipe.name}\n")[1].split("\n### ")[0]
        assert f"hescribe datasets prepare {recipe.name} FOLDER -o DIR" in part
        assert all(line in part for line in recipe.download)
        assert all(section.section_id in part for section in recipe.sections)
        assert all(reason in part for figure in recipe.figures for reason in figure.differs)
