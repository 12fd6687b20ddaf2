"""The site's side: a thin ClientApp over the work of measuring."""
