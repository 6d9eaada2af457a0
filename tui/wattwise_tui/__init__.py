"""The terminal chat. Uses the SDK only, never a runtime directly."""
