"""From prompts to further spans: `generator` decides what comes next, `decoding` keeps the documents, `kv_cache` what was computed."""
