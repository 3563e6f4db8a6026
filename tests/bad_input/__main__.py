"""`python -m tests.bad_input` writes docs/errors.md."""

from tests.bad_input.page import PAGE, page

PAGE.write_text(page(), encoding="utf-8")
