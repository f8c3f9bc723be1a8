"""Media to tokens and back: one class per tokenizer, found by entry point.

`contract` says what a tokenizer is, `registry` finds and builds them, `conformance` checks any of them. Importing this
package imports none of the libraries that tokenizers are built on.
"""
