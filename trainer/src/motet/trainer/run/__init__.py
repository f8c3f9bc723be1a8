"""A training run: `train` is the loop, `state` what it works on, `checkpoint` what it goes on from, `launch` who starts it."""
