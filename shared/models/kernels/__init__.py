"""Forward passes of small models in compiled code: a pass is one call, not fifty."""
