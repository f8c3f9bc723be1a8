"""A tokenizing job: `partitions` cut the corpus, `engines` map `tokenize` over them, `job` writes what came of it."""
