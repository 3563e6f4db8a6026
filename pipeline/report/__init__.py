"""The run's results for a reader: the page (one HTML file that works offline) and the release with its model card.

`page` and `card` fill the templates `page.html.j2` and `card.md.j2`. `reading` reads what other stages wrote; `facts`,
`results` and `where` put it into words and tables; `figures` and `curves` draw it; `quotes` chooses texts to show.
"""
