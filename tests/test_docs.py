"""What the docs say of the sources is made from them."""

from tests import module_map


def test_the_list_of_modules_is_made_from_the_tree() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.render(), "modules changed: run `python -m tests.module_map`"
