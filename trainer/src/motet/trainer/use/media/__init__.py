"""Raw prompts in, files a person can open out; what a model makes of held-out documents, shown and scored."""
