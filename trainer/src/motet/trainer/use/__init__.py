"""What is done with a configuration, a run or a model: a file a verb (`plan`, `why`, `evaluate`, `export`), and `media`."""
