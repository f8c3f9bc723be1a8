"""The verbs, one file a group. Nothing here is imported but Typer until a verb runs."""
