"""Blind comparison of restorations: the page that asks voters, and the tally of their votes."""
